use std::fs;

use super::*;

/// With its store in a folder that is not there: who looks at it fails otherwise.
fn configured(folder: &Path) -> Config {
    let folder = folder.display();
    let text = format!(
        "db_path = \"{folder}/a.db\"\n[snapshot]\nstore = \"file\"\n\
         [snapshot.file]\npath = \"{folder}/none/store\""
    );
    Config::parse(Path::new("box.toml"), &text).unwrap()
}

#[test]
fn nothing_is_restored_beside_what_another_database_left() {
    let folder = tempfile::tempdir().unwrap();
    let config = configured(folder.path());
    let to = folder.path().join("r.db");
    for end in ["-wal", "-shm", "-journal"] {
        let leftover = folder.path().join(format!("r.db{end}"));
        fs::write(&leftover, "old").unwrap();
        let text = restore(&config, &Options::default(), Some(&to), &mut Vec::new()).unwrap_err();
        assert!(
            text.contains(&format!("r.db{end} is left over")) && text.contains("move it away"),
            "{text}"
        );
        assert_eq!(fs::read(&leftover).unwrap(), b"old");
        fs::remove_file(&leftover).unwrap();
    }
    assert!(!to.exists());
}

#[test]
fn who_reads_makes_no_folder() {
    let folder = tempfile::tempdir().unwrap();
    let config = configured(folder.path());
    let store = folder.path().join("none/store");
    let to = folder.path().join("r.db");
    let missing = |is: &str| {
        let listed = list(&config, &Options::default(), false, &mut Vec::new()).unwrap_err();
        let restored =
            restore(&config, &Options::default(), Some(&to), &mut Vec::new()).unwrap_err();
        for text in [listed, restored] {
            assert!(text.contains(is), "no {is:?} in {text:?}");
        }
    };
    missing("there is no such folder: no snapshot was saved there yet, or snapshot.file.path is");
    fs::create_dir(folder.path().join("none")).unwrap();
    missing("there is no such folder");
    assert!(!store.exists());
    fs::create_dir(&store).unwrap();
    assert_eq!(
        list(&config, &Options::default(), false, &mut Vec::new()),
        Ok(())
    );
}
