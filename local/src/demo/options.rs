//! The demo's options.

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

/// The usage; `local/run` shows it before anything is built.
pub const USAGE: &str = include_str!("usage.txt");

/// The options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The project's folder.
    pub root: PathBuf,
    /// The folder of the functions' binaries.
    pub binaries: PathBuf,
    /// The number of builds that request an agent.
    pub requests: usize,
    /// Whether to stay up.
    pub serve: bool,
    /// Whether to run only the check.
    pub check: bool,
    /// A folder with a configuration of the user's own, instead of the demo's.
    pub configuration: Option<PathBuf>,
}

impl Options {
    /// Parses the command line; `None` if it asks for help.
    ///
    /// # Errors
    /// When it is invalid.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            root: PathBuf::from("."),
            binaries: PathBuf::from("target/local"),
            requests: 20,
            serve: false,
            check: false,
            configuration: None,
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
                "--configuration" => options.configuration = Some(value()?.into()),
                "--help" | "-h" => return Ok(None),
                _ => bail!("{argument}: no such option\n{USAGE}"),
            }
        }
        if options.configuration.is_some() {
            // Builds for its labels are the user's.
            options.requests = 0;
            options.serve = !options.check;
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
    fn parses_the_command_line() -> Result<()> {
        let options = parse("--requests 4 --serve --root /x")?.context("no help was asked for")?;
        assert_eq!((options.requests, options.serve, options.root), (4, true, PathBuf::from("/x")));
        assert_eq!(parse("--help")?, None);
        let options = parse("--configuration converted")?.context("no help was asked for")?;
        assert_eq!((options.requests, options.serve, options.configuration), (0, true, Some("converted".into())));
        for wrong in ["--requests", "--requests many", "--fast", "--configuration"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        Ok(())
    }

    /// Without cargo, python or anything else to install or build with.
    #[test]
    fn the_script_answers_help_and_invalid_options_at_once() -> Result<()> {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/run");
        let tools = tempfile::tempdir()?;
        for tool in ["cat", "mkdir", "dirname"] {
            let found = ["/usr/bin", "/bin"].map(|folder| PathBuf::from(folder).join(tool));
            let found = found.iter().find(|path| path.exists()).context(tool)?;
            std::os::unix::fs::symlink(found, tools.path().join(tool))?;
        }
        let run = |arguments: &[&str]| {
            std::process::Command::new("/bin/bash").arg(script).args(arguments).env("PATH", tools.path()).output()
        };
        let help = run(&["--requests", "3", "--help"])?;
        assert!(help.status.success(), "{help:?}");
        assert_eq!(String::from_utf8(help.stdout)?, USAGE);
        for wrong in [&["--fast"][..], &["--requests"], &["--requests", "many"], &["20"], &["--configuration"]] {
            let refused = run(wrong)?;
            assert!(!refused.status.success() && parse(&wrong.join(" ")).is_err(), "{wrong:?}");
            assert!(String::from_utf8(refused.stderr)?.contains(USAGE), "{wrong:?}");
        }
        // The options that the script accepts are valid for the demo; the script then looks for cargo.
        for right in [&["--serve"][..], &["--check"], &["--requests", "0"]] {
            let goes_on = run(right)?;
            assert!(parse(&right.join(" "))?.is_some(), "{right:?}");
            assert!(String::from_utf8(goes_on.stderr)?.contains("cargo is missing"), "{right:?}");
        }
        Ok(())
    }
}
