//! What the demo was asked for.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// How the demo is used.
pub const USAGE: &str = "\
Usage: ./local/run [--requests N] [--serve | --check]

  --requests N   how many builds ask for an agent (20)
  --serve        stay up afterwards, for requests by hand
  --check        no builds: let the request function check the configuration, and show its report";

/// The options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The project's folder.
    pub root: PathBuf,
    /// Where the functions' binaries are.
    pub binaries: PathBuf,
    /// How many builds ask for an agent.
    pub requests: usize,
    /// Whether to stay up.
    pub serve: bool,
    /// Whether the check is all that is wanted.
    pub check: bool,
}

impl Options {
    /// Reads the command line; none if it asks for help.
    ///
    /// # Errors
    /// When it cannot be understood.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            root: PathBuf::from("."),
            binaries: PathBuf::from("target/local"),
            requests: 20,
            serve: false,
            check: false,
        };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value\n{USAGE}"));
            match argument.as_str() {
                "--root" => options.root = value()?.into(),
                "--binaries" => options.binaries = value()?.into(),
                "--requests" => {
                    let text = value()?;
                    options.requests = text.parse().with_context(|| format!("--requests {text}: not a number"))?;
                }
                "--serve" => options.serve = true,
                "--check" => options.check = true,
                "--help" | "-h" => return Ok(None),
                _ => bail!("{argument}: no such option\n{USAGE}"),
            }
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>> {
        Options::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn the_command_line_is_read() -> Result<()> {
        let options = parse("--requests 4 --serve --root /x")?.context("no help was asked for")?;
        assert_eq!((options.requests, options.serve, options.root), (4, true, PathBuf::from("/x")));
        assert_eq!(parse("--help")?, None);
        for wrong in ["--requests", "--requests many", "--fast"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }
}
