//! Looks in `/proc` for a process that waits to have the database for itself.
//!
//! Such a process has the database open for writing, and not the WAL. Processes of other users and
//! of other containers are not seen, unless we are root. [`super::opened`] notices those, too. This
//! search runs where that leaves a doubt, and to find out whether the process is a backup that
//! copies the file.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{DATABASE, ENDS, WAL};
use crate::db_file::with_end;

/// Shortest pause between two searches.
const PAUSE: Duration = Duration::from_secs(1);

/// A search takes at most one part in this many of the time.
const PARTS: u32 = 200;

/// A process that has the database open alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alone {
    /// No process is seen.
    Nobody,
    /// The process cannot write to the database: a backup copies the file.
    Reader,
    Writer,
}

/// Searches that a doubt causes.
#[derive(Debug, Default)]
pub(super) struct Searches {
    /// No search before this time.
    next: Option<Instant>,
}

impl Searches {
    /// As [`is_waited_for`]; false if the last search was a moment ago.
    pub(super) fn is_waited_for(&mut self, database: &Path) -> bool {
        let began = Instant::now();
        if self.next.is_some_and(|next| began < next) {
            return false;
        }
        let is_waited_for = is_waited_for(database);
        self.next = Some(Instant::now() + PAUSE.max(began.elapsed() * PARTS));
        is_waited_for
    }
}

/// Whether another process has the database at `path` open for writing, and not its WAL.
pub fn is_waited_for(path: &Path) -> bool {
    who_is_alone(path) == Alone::Writer
}

/// The kind of process that has the database at `path` open, and not its WAL.
pub(super) fn who_is_alone(path: &Path) -> Alone {
    let beside = |end| with_end(path, end);
    let Ok(database) = fs::metadata(path) else {
        return Alone::Nobody;
    };
    let wal = fs::metadata(beside(ENDS[WAL])).ok();
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let others = numbers.filter(|process| *process != own);
    let alone = others.map(|process| {
        let open = open_files(process, &beside(ENDS[DATABASE]), &beside(ENDS[WAL]));
        let has_wal = wal
            .as_ref()
            .is_some_and(|wal| open.iter().any(|o| is_same(&o.0, wal)));
        let mine = open.iter().filter(|o| !has_wal && is_same(&o.0, &database));
        let kind = |writes: bool| if writes { Alone::Writer } else { Alone::Reader };
        mine.map(|o| kind(o.1)).max().unwrap_or(Alone::Nobody)
    });
    alone.max().unwrap_or(Alone::Nobody)
}

/// The files of a process whose names begin like one of the two, and whether it can write to them.
fn open_files(process: u32, database: &Path, wal: &Path) -> Vec<(Metadata, bool)> {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return Vec::new();
    };
    let is_like = |link: &Path| {
        // The kernel appends a suffix to the name of a removed file.
        let name = link.file_name().unwrap_or_default().to_string_lossy();
        let mut begins = [database, wal].into_iter().filter_map(Path::file_name);
        begins.any(|begin| name.starts_with(&*begin.to_string_lossy()))
    };
    let files = files.flatten().map(|entry| entry.path());
    let files = files.filter(|file| fs::read_link(file).is_ok_and(|link| is_like(&link)));
    // The permissions of the link are those of the descriptor.
    let of_file = |file: std::path::PathBuf| {
        let writes = fs::symlink_metadata(&file).ok()?.mode() & 0o200 != 0;
        Some((fs::metadata(file).ok()?, writes))
    };
    files.filter_map(of_file).collect()
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Keeps two files open until it is killed; `writes` to the first, or reads it.
    fn holds(files: [&Path; 2], writes: bool) -> Child {
        let open = |path| fs::File::options().read(true).write(writes).open(path);
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(open(files[0]).unwrap());
        let other = fs::File::open(files[1]).unwrap();
        command.stdout(Stdio::from(other)).spawn().unwrap()
    }

    #[test]
    fn a_process_with_the_database_and_without_its_wal_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal, other] = ["a.db", "a.db-wal", "b.db"].map(|name| dir.path().join(name));
        for path in [&db, &wal, &other] {
            fs::write(path, "").unwrap();
        }
        let mut holders = Vec::new();
        for (files, writes, expected) in [
            ([&other, &wal], true, Alone::Nobody),
            ([&db, &wal], true, Alone::Nobody),
            ([&db, &other], false, Alone::Reader),
            ([&db, &other], true, Alone::Writer),
        ] {
            holders.push(holds(files.map(|path| path.as_path()), writes));
            assert_eq!(who_is_alone(&db), expected, "{files:?}");
        }
        for mut holder in holders {
            holder.kill().unwrap();
            holder.wait().unwrap();
        }
    }
}
