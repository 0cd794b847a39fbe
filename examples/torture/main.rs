//! Breaks things under real processes and checks the promises: no committed write is lost unless a
//! newer one replaced it, and all nodes become equal.
//!
//! scripts/crash.sh, power-cut.sh, partition.sh, disk-trouble.sh and soak.sh call it, and set up
//! everything that needs a shell. It prints its seed. The choices follow from the seed, the timing
//! of processes does not.
#![allow(unreachable_pub)] // no other crate uses any of it

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use pico_args::Arguments;

mod app;
mod big;
mod check;
mod cluster;
mod crash;
mod disk;
mod displaced;
mod partition;
mod power;
mod process;
mod random;
mod record;
mod schema;
mod soak;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The options of every scenario.
pub struct Options {
    pub folder: PathBuf,
    pub seed: u64,
    pub time: Duration,
    pub rest: Arguments,
}

impl Options {
    pub fn option<T: FromStr>(&mut self, name: &'static str, default: T) -> Result<T>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        Ok(self.rest.opt_value_from_str(name)?.unwrap_or(default))
    }

    /// Fails if an option is left over after all were read. An unknown option, or one that is given
    /// twice, would otherwise be ignored in silence.
    pub fn nothing_left(&self) -> Result<()> {
        match self.rest.clone().finish() {
            left if left.is_empty() => Ok(()),
            left => Err(format!("left over: {left:?}").into()),
        }
    }

    fn parse(mut arguments: Arguments, scenario: &str) -> Result<Options> {
        let drawn = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let seed = arguments.opt_value_from_str("--seed")?;
        let minutes: Option<f64> = arguments.opt_value_from_str("--minutes")?;
        let usual = if scenario == "soak" { 60.0 } else { 1.0 };
        Ok(Options {
            folder: arguments.value_from_str("--folder")?,
            seed: seed.unwrap_or(u64::from(drawn.subsec_nanos())),
            time: Duration::from_secs_f64(minutes.unwrap_or(usual) * 60.0),
            rest: arguments,
        })
    }
}

fn run() -> Result<()> {
    let mut arguments = Arguments::from_env();
    let scenario = arguments.subcommand()?.unwrap_or_default();
    if scenario == "app" {
        return app::run(&app::Options {
            db: arguments.value_from_str("--db")?,
            record: arguments.value_from_str("--record")?,
            writer: arguments.value_from_str("--writer")?,
            seed: arguments.value_from_str("--seed")?,
            pause: arguments.value_from_str("--pause")?,
            sync: arguments.value_from_str("--sync")?,
            endures: arguments.contains("--endures"),
        });
    }
    let options = Options::parse(arguments, &scenario)?;
    println!("{scenario}: seed {}", options.seed);
    let (seed, folder) = (options.seed, options.folder.clone());
    let done = match scenario.as_str() {
        "crash" => crash::run(options),
        "disk" => disk::run(options),
        "partition" => partition::run(options),
        "power" => power::run(options),
        "soak" => soak::run(options),
        other => Err(format!("no scenario {other:?}").into()),
    };
    done.map_err(|e| {
        format!(
            "seed {seed}: {e}\neverything is kept in {}",
            folder.display()
        )
        .into()
    })
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("FAILED: {e}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_given_twice_is_not_ignored() {
        let parse = |text: &str| {
            let words = text.split(' ').map(Into::into).collect();
            Options::parse(Arguments::from_vec(words), "soak").unwrap()
        };
        let once = parse("--folder x --minutes 2");
        assert_eq!(once.time, Duration::from_secs(120));
        assert!(once.nothing_left().is_ok());
        let twice = parse("--folder x --minutes 60 --minutes 2");
        assert!(twice.nothing_left().is_err());
    }
}
