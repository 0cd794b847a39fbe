//! Finds the `nats-server` program.

use std::path::{Path, PathBuf};
use std::{env, fs};

use super::ServerError;

const NAME: &str = "nats-server";

/// Returns the configured program, or else the first one found beside this executable, in PATH, or
/// in /usr/sbin. Debian installs it in /usr/sbin, which is not in every user's PATH. Returns
/// `NoBinary` if none is found.
pub fn find_binary(configured: Option<&Path>) -> Result<PathBuf, ServerError> {
    if let Some(path) = configured {
        let found = is_program(path).then(|| path.to_path_buf());
        return found.ok_or_else(|| ServerError::NoBinary(path.display().to_string()));
    }
    let own = env::current_exe()
        .ok()
        .and_then(|exe| Some(exe.parent()?.to_path_buf()));
    let path = env::var_os("PATH").unwrap_or_default();
    let places = own
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(["/usr/sbin".into()]);
    let mut candidates = places.map(|folder| folder.join(NAME));
    candidates
        .find(|candidate| is_program(candidate))
        .ok_or_else(|| ServerError::NoBinary("beside our own program, PATH, /usr/sbin".to_string()))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_one_says_how_to_get_it() {
        let error = find_binary(Some(Path::new("/nowhere/nats-server")))
            .unwrap_err()
            .to_string();
        for word in [
            "/nowhere/nats-server",
            "apt-get install",
            "nats.server_binary",
        ] {
            assert!(error.contains(word), "{error}");
        }
    }
}
