//! Commands that ask the running daemon.

use pico_args::Arguments;

use super::{CliError, Command, DaemonQuery, config, finish, free_word, node_id, value};

/// The command `word`, one of [`super::SUBCOMMANDS`], with its flags.
pub(super) fn parse(word: &str, mut args: Arguments) -> Result<Command, CliError> {
    let config = config(&mut args)?;
    let json = word != "diag" && args.contains("--json");
    let (what, takes) = match word {
        "status" => (DaemonQuery::Status, "status takes -config and -json alone"),
        "schema" => {
            let cluster = args.contains("--cluster");
            match free_word(&mut args) {
                Some(word) if word == "status" => {}
                _ => return Err(CliError("schema needs the word status behind it".into())),
            }
            let takes = "schema status takes -config, -json and -cluster";
            (DaemonQuery::Schema { cluster }, takes)
        }
        "verify" => {
            let (repair, dry_run) = (args.contains("--repair"), args.contains("--dry-run"));
            if dry_run && !repair {
                let text =
                    "-dry-run does not go here without -repair: verify alone repairs nothing";
                return Err(CliError(text.into()));
            }
            let takes = "verify takes -config, -json, -repair and -dry-run";
            (DaemonQuery::Verify { repair, dry_run }, takes)
        }
        "forget" => {
            let dry_run = args.contains("--dry-run");
            let given = free_word(&mut args).unwrap_or_default();
            let given = given.to_string_lossy();
            let node = node_id(&given).map_err(|allowed| {
                CliError(format!("forget needs the number of a node, {allowed}"))
            })?;
            let takes = "forget takes a node, -config, -json and -dry-run";
            (DaemonQuery::Forget { node, dry_run }, takes)
        }
        "pause" | "resume" => {
            let pauses = word == "pause";
            (
                DaemonQuery::Pause { pauses },
                "pause and resume take -config and -json alone",
            )
        }
        "diag" => {
            let to = value(&mut args, "--o")?.map(Into::into);
            (DaemonQuery::Diag { to }, "diag takes -config and -o FILE")
        }
        word => return Err(CliError(format!("unexpected argument {word:?}"))),
    };
    finish(args, takes)?;
    Ok(Command::Query { config, json, what })
}

/// `schema status` in the form of the Go version: true if all nodes are asked; none if neither flag
/// is given.
pub(super) fn schema_flag(args: &mut Arguments) -> Option<bool> {
    let cluster = args.contains("--schema-status-cluster");
    (args.contains("--schema-status") || cluster).then_some(cluster)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::super::parse;
    use super::*;

    fn read(line: &str) -> Result<DaemonQuery, String> {
        match parse(line.split(' ').map(OsString::from)) {
            Ok(Command::Query { what, .. }) => Ok(what),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn commands_and_their_flags() {
        for (line, what) in [
            ("status", DaemonQuery::Status),
            ("pause -json", DaemonQuery::Pause { pauses: true }),
            (
                "-config a.toml resume",
                DaemonQuery::Pause { pauses: false },
            ),
            ("-config a.toml status -json", DaemonQuery::Status),
            ("schema status", DaemonQuery::Schema { cluster: false }),
            (
                "-cluster schema status",
                DaemonQuery::Schema { cluster: true },
            ),
            ("-schema-status", DaemonQuery::Schema { cluster: false }),
            (
                "-schema-status-cluster -json",
                DaemonQuery::Schema { cluster: true },
            ),
            (
                "verify -repair",
                DaemonQuery::Verify {
                    repair: true,
                    dry_run: false,
                },
            ),
            (
                "forget 18446744073709551615 --dry-run",
                DaemonQuery::Forget {
                    node: u64::MAX,
                    dry_run: true,
                },
            ),
            (
                "diag -o x.txt",
                DaemonQuery::Diag {
                    to: Some("x.txt".into()),
                },
            ),
        ] {
            assert_eq!(read(line), Ok(what), "{line}");
        }
    }

    #[test]
    fn calls_that_make_no_sense() {
        for (line, says) in [
            ("schema", "the word status"),
            ("schema what", "the word status"),
            ("forget", "the number of a node"),
            ("forget 0", "the number of a node"),
            ("forget x", "the number of a node"),
            ("status -repair", "-repair does not go here"),
            ("status now", "unexpected argument"),
            ("verify -dry-run", "without -repair"),
            ("-o x.txt", "it is for restore and diag"),
            ("pause now", "unexpected argument"),
            ("diag -json", "-json does not go here"),
        ] {
            let error = read(line).unwrap_err();
            assert!(error.contains(says), "{line}: {error}");
        }
    }
}
