//! Looks in `/proc` for a process that waits to have the database for itself.
//!
//! It has the database open, and not the WAL. Processes of other users and of other containers are not
//! seen, unless we are root: this is only asked where [`super::opened`] leaves a doubt.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{DATABASE, ENDS, WAL, with_end};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// Looking takes one part of so many of the time, at the most.
const PARTS: u32 = 200;

/// Looks that are made where there is a doubt.
#[derive(Debug, Default)]
pub(super) struct Looks {
    /// Not before.
    next: Option<Instant>,
}

impl Looks {
    /// As [`is_waited_for`]; false if that was asked a moment ago.
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

/// Whether another process has the database at `path` open and not its WAL.
pub fn is_waited_for(path: &Path) -> bool {
    let beside = |end| path.with_file_name(with_end(path.file_name().unwrap_or_default(), end));
    let Ok(database) = fs::metadata(path) else {
        return false;
    };
    let wal = fs::metadata(beside(ENDS[WAL])).ok();
    let own = std::process::id();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let mut others = numbers.filter(|process| *process != own);
    others.any(|process| {
        let open = open_files(process, &beside(ENDS[DATABASE]), &beside(ENDS[WAL]));
        let has = |file: &Metadata| open.iter().any(|o| is_same(o, file));
        has(&database) && !wal.as_ref().is_some_and(has)
    })
}

/// Those files of a process whose names end like one of two.
fn open_files(process: u32, database: &Path, wal: &Path) -> Vec<Metadata> {
    let Ok(files) = fs::read_dir(format!("/proc/{process}/fd")) else {
        return Vec::new();
    };
    let is_like = |link: &Path| {
        // The name of one that is removed has something behind it.
        let name = link.file_name().unwrap_or_default().to_string_lossy();
        let mut ends = [database, wal].into_iter().filter_map(Path::file_name);
        ends.any(|end| name.starts_with(&*end.to_string_lossy()))
    };
    let files = files.flatten().map(|entry| entry.path());
    let files = files.filter(|file| fs::read_link(file).is_ok_and(|link| is_like(&link)));
    files.flat_map(fs::metadata).collect()
}

fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Reads standard input from one file and has another open, until it is killed.
    fn holds(files: [&Path; 2]) -> std::process::Child {
        let open = |path| fs::File::open(path).unwrap();
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(open(files[0]));
        command.stdout(Stdio::from(open(files[1]))).spawn().unwrap()
    }

    #[test]
    fn a_process_with_the_database_and_without_its_wal_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let [db, wal, other] = ["a.db", "a.db-wal", "b.db"].map(|name| dir.path().join(name));
        for path in [&db, &wal, &other] {
            fs::write(path, "").unwrap();
        }
        let mut holders = Vec::new();
        for (files, expected) in [
            ([&other, &wal], false),
            ([&db, &wal], false),
            ([&db, &other], true),
        ] {
            holders.push(holds(files.map(|path| path.as_path())));
            assert_eq!(is_waited_for(&db), expected, "{files:?}");
        }
        for mut holder in holders {
            holder.kill().unwrap();
            holder.wait().unwrap();
        }
    }
}
