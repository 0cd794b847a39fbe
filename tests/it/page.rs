//! The page at `/`, in a real browser: Chromium without a screen.
//!
//! Without Chromium the page is not checked, unless `HARMONYLITE_REQUIRE_MONITORING` is set.
//! `HARMONYLITE_PICTURES` names a folder in which pictures of the page are kept
//! (examples/monitoring has those of this test).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::cluster::Cluster;
use crate::health::{ask, serve};
use crate::node::{Node, until};

const BROWSERS: [&str; 4] = [
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
];

/// The values of `preferredColorScheme`.
const SCHEMES: [(&str, u8); 2] = [("dark", 0), ("light", 1)];
const SIZES: [&str; 2] = ["360,1300", "1280,900"];

struct Browser {
    program: &'static str,
    profile: PathBuf,
}

impl Browser {
    fn find(folder: &Path) -> Option<Browser> {
        let is_there = |program: &&&str| {
            let mut command = Command::new(program);
            command
                .arg("--version")
                .output()
                .is_ok_and(|o| o.status.success())
        };
        let program = BROWSERS.iter().find(is_there).copied();
        let is_required = std::env::var_os("HARMONYLITE_REQUIRE_MONITORING").is_some();
        assert!(
            program.is_some() || !is_required,
            "no browser: apt-get install chromium-headless-shell"
        );
        let profile = folder.join("profile");
        program.map(|program| Browser { program, profile })
    }

    fn run(&self, port: u16, words: &[String]) -> Output {
        let mut command = Command::new(self.program);
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
            ])
            .args([
                "--virtual-time-budget=8000",
                "--timeout=20000",
                "--enable-logging=stderr",
            ])
            .arg(format!("--user-data-dir={}", self.profile.display()))
            .args(words)
            .arg(format!("http://127.0.0.1:{port}/"));
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        // A line of the console is an error of the script, or something that the page's policy
        // forbids.
        assert!(!said.contains(":CONSOLE"), "{said}");
        output
    }

    /// The page's text after its script ran.
    fn text(&self, port: u16) -> String {
        let output = self.run(port, &["--dump-dom".into()]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn until_text(&self, port: u16, parts: &[&str]) -> String {
        until(&format!("the page says {parts:?}"), || {
            let text = self.text(port);
            parts.iter().all(|part| text.contains(part)).then_some(text)
        })
    }

    /// Takes a picture in each size and scheme.
    fn pictures(&self, port: u16, name: &str, folder: &Path) {
        for (scheme, number) in SCHEMES {
            for size in SIZES {
                let width = size.split(',').next().unwrap();
                let file = folder.join(format!("page-{name}-{scheme}-{width}.png"));
                let words = [
                    format!("--screenshot={}", file.display()),
                    format!("--window-size={size}"),
                    format!("--blink-settings=preferredColorScheme={number}"),
                ];
                self.run(port, &words);
                let picture = fs::read(&file).unwrap();
                assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000);
                let wide = u32::from_be_bytes(picture[16..20].try_into().unwrap());
                assert_eq!(wide.to_string(), width);
            }
        }
    }
}

#[test]
fn a_stranger_sees_who_lacks_something() {
    let mut cluster = Cluster::stopped(3, |_| {});
    let names = ["berlin", "lyon", "<img src=x onerror=alert(1)>"];
    for (node, name) in cluster.nodes.iter_mut().zip(names) {
        node.set("node_name", &format!("'{name}'"))
            .set("status_interval", "1000");
    }
    let port = serve(&mut cluster.nodes[0]);
    Node::start_all(&mut cluster.nodes);
    for n in 0..3 {
        cluster.nodes[n].execute(&format!("INSERT INTO item VALUES ({n}, 'a', 0)"));
    }
    cluster.converge();
    let answer = ask(port, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let policy = "Content-Security-Policy: default-src 'none'; script-src 'sha256-";
    assert!(
        answer.contains(policy) && answer.contains("text/html"),
        "{answer}"
    );

    let folder = tempfile::tempdir().unwrap();
    let Some(browser) = Browser::find(folder.path()) else {
        return;
    };
    let pictures = std::env::var_os("HARMONYLITE_PICTURES").map(PathBuf::from);
    let pictures = pictures.unwrap_or_else(|| folder.path().to_owned());
    let text = browser.until_text(port, &["All 3 nodes have everything.", ">lyon<"]);
    assert!(
        text.contains("&lt;img src=x onerror") && !text.contains("<img"),
        "{text}"
    );
    assert!(text.contains("Nothing waits.") && text.contains("None since the start."));
    browser.pictures(port, "well", &pictures);

    // A migration ran on two of the three nodes.
    for n in [1, 2] {
        cluster.nodes[n].execute("CREATE TABLE orders (id TEXT PRIMARY KEY, what)");
    }
    cluster.nodes[1].execute("INSERT INTO orders VALUES ('a', 1), ('b', 2)");
    let lacks = ["2 of 3 nodes have everything.", "2 row(s) held", "orders"];
    browser.until_text(port, &lacks);
    browser.pictures(port, "trouble", &pictures);
    cluster.nodes[0].run(&["pause"]);
    let offline = [
        "This node is offline on purpose.",
        "It is paused, until harmonylite resume.",
    ];
    browser.until_text(port, &offline);
    cluster.nodes[0].run(&["resume"]);
    browser.until_text(port, &lacks);
    cluster.broker.kill();
    browser.until_text(port, &["This node is cut off from the others."]);
}
