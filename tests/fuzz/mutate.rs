//! The corpus, the changes that are made to its entries, and the loop over both.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, RngSeed, TestRunner, contextualize_config};

/// The changed copies of each property in a run of all tests.
const CASES: u32 = 400;

/// Many thousand times what a case takes.
const HANGS_AFTER: Duration = Duration::from_secs(120);

/// Values of JSON and YAML.
const VALUES: [&str; 20] = [
    "null",
    "true",
    "0",
    "-1",
    "0.5",
    "1e400",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "-9223372036854775808",
    "99999999999999999999",
    "\"\"",
    "\"\\u0000\"",
    "\"\\ud800\"",
    "\"\u{202e}\u{feff}\u{1f9d1}\u{200d}\u{1f527}\"",
    "\"9999-12-30T22:00:00Z\"",
    "\"-009999-01-02T01:59:59Z\"",
    "[]",
    "{}",
    "[[], {\"\": null}]",
];

/// Parts of texts in any of the formats.
const PIECES: [&[u8]; 26] = [
    b"\0",
    b"\r\n",
    b"\"",
    b"\\",
    b"'",
    b"\xff\xfe",
    b"\xc0\xaf",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"\xef\xbb\xbf",
    b"%2e%2e/",
    b"$$",
    b"-",
    b"4294967295",
    b"99999999999999999999",
    b"arn:aws:ecs:::task//",
    b"->",
    b"<->",
    b"!(",
    b" && ",
    b"&lol;",
    b"<!DOCTYPE a [<!ENTITY lol \"lol\">]>",
    b"<![CDATA[",
    b"&a [*a, *a]",
    b"<<: *a",
    b"\n---\n",
];

/// What nests, and what follows when it is closed.
const NESTING: [(&str, &str); 6] = [("[", "]"), ("{\"a\":", "}"), ("<a>", "</a>"), ("(", ")"), ("!(", ")"), ("- ", "")];

/// An input; shown as text.
#[derive(Clone, Default)]
pub(crate) struct Input(pub Vec<u8>);

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// A change of an input. Places are relative to its length.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Flip(Index, u8),
    Cut(Index),
    Delete(Index, usize),
    /// Some bytes again, this many times.
    Repeat(Index, usize, usize),
    Insert(Index, &'static [u8]),
    /// Another value in place of a number, a word or a quoted text.
    Replace(Index, &'static str),
    Nest(Index, (&'static str, &'static str), usize),
    /// Continues with the end of another entry.
    Splice(Index, Index, Index),
}

pub(crate) fn changes(most: usize) -> impl Strategy<Value = Vec<Change>> {
    let at = any::<Index>;
    let change = prop_oneof![
        (at(), 0..8u8).prop_map(|(at, bit)| Change::Flip(at, bit)),
        at().prop_map(Change::Cut),
        (at(), 1..40usize).prop_map(|(at, length)| Change::Delete(at, length)),
        (at(), 1..40usize, 1..4usize).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        (at(), 1..8usize, 1..3000usize).prop_map(|(at, length, times)| Change::Repeat(at, length, times)),
        (at(), proptest::sample::select(&PIECES[..])).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at(), proptest::sample::select(&VALUES[..])).prop_map(|(at, value)| Change::Replace(at, value)),
        (at(), proptest::sample::select(&VALUES[..])).prop_map(|(at, value)| Change::Replace(at, value)),
        (at(), proptest::sample::select(&NESTING[..]), prop_oneof![1..200usize, 1..20_000usize])
            .prop_map(|(at, kind, depth)| Change::Nest(at, kind, depth)),
        (at(), at(), at()).prop_map(|(entry, at, from)| Change::Splice(entry, at, from)),
    ];
    vec(change, 0..=most)
}

/// The bytes from a place on, at most as many as there are.
fn slice(at: Index, length: usize, bytes: &[u8]) -> Range<usize> {
    let start = at.index(bytes.len() + 1);
    start..(start + length).min(bytes.len())
}

/// The numbers, words and quoted texts.
fn scalars(bytes: &[u8]) -> Vec<Range<usize>> {
    let (mut found, mut start) = (Vec::new(), 0);
    while start < bytes.len() {
        let is_word = |byte: &&u8| byte.is_ascii_alphanumeric() || b"+-._".contains(byte);
        let length = match bytes[start] {
            b'"' => 2 + bytes[start + 1..].iter().take_while(|byte| **byte != b'"').count(),
            _ => bytes[start..].iter().take_while(is_word).count(),
        };
        let end = (start + length.max(1)).min(bytes.len());
        if length > 0 {
            found.push(start..end);
        }
        start = end;
    }
    found
}

pub(crate) fn apply(changes: &[Change], bytes: &mut Vec<u8>, others: &[Input]) {
    for change in changes {
        match *change {
            Change::Flip(at, bit) if !bytes.is_empty() => {
                let at = at.index(bytes.len());
                bytes[at] ^= 1 << bit;
            }
            Change::Flip(..) => {}
            Change::Cut(at) => bytes.truncate(at.index(bytes.len() + 1)),
            Change::Delete(at, length) => drop(bytes.drain(slice(at, length, bytes))),
            Change::Repeat(at, length, times) => {
                let range = slice(at, length, bytes);
                let more = bytes[range.clone()].repeat(times);
                bytes.splice(range.end..range.end, more);
            }
            Change::Insert(at, piece) => drop(bytes.splice(slice(at, 0, bytes), piece.iter().copied())),
            Change::Replace(at, value) => {
                let scalars = scalars(bytes);
                if !scalars.is_empty() {
                    bytes.splice(scalars[at.index(scalars.len())].clone(), value.bytes());
                }
            }
            Change::Nest(at, (open, close), depth) => {
                let nested = [open.repeat(depth), "1".into(), close.repeat(depth)].concat();
                bytes.splice(slice(at, 0, bytes), nested.into_bytes());
            }
            Change::Splice(entry, at, from) if !others.is_empty() => {
                let other = &others[entry.index(others.len())].0;
                bytes.truncate(at.index(bytes.len() + 1));
                bytes.extend(&other[from.index(other.len() + 1)..]);
            }
            Change::Splice(..) => {}
        }
    }
}

/// The entries of a folder, by the name of their file.
pub(crate) fn corpus(folder: &str) -> BTreeMap<String, Input> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(folder);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let files = files.map(|file| {
        let file = file.expect("a file");
        (file.file_name().to_string_lossy().into_owned(), Input(std::fs::read(file.path()).expect("readable")))
    });
    files.collect()
}

/// Changed entries, and bytes that were never one.
pub(crate) fn inputs(entries: Vec<Input>) -> impl Strategy<Value = Input> {
    let changed = (any::<Index>(), changes(6)).prop_map(move |(entry, changes)| {
        let mut bytes = entries[entry.index(entries.len())].0.clone();
        apply(&changes, &mut bytes, &entries);
        Input(bytes)
    });
    prop_oneof![15 => changed, 1 => vec(any::<u8>(), 0..300).prop_map(Input)]
}

/// Runs a property, which says whether it accepts an input, on each entry of a folder, and on changed ones.
pub(crate) fn holds(folder: &str, property: impl Fn(&[u8]) -> bool) {
    holds_at(1, folder, property);
}

/// The same for a property that takes so many times as long as others.
pub(crate) fn holds_at(cost: u32, folder: &str, property: impl Fn(&[u8]) -> bool) {
    let entries = corpus(folder);
    for (name, Input(bytes)) in &entries {
        assert_eq!(property(bytes), !name.starts_with("refused"), "{folder}/{name}: whether it is accepted");
    }
    run(cost, inputs(entries.into_values().collect()), |Input(bytes)| {
        property(&bytes);
    });
}

/// Runs a test on values of a strategy, with a fixed seed unless the environment names another. One that takes `cost`
/// times as long as others gets that part of the cases.
pub(crate) fn run<S: Strategy>(cost: u32, strategy: S, test: impl Fn(S::Value))
where
    S::Value: Clone + Default + Send + 'static,
{
    let config = Config { cases: CASES, rng_seed: RngSeed::Fixed(0), max_shrink_iters: 5000, ..Config::default() };
    let mut config = Config { failure_persistence: None, ..contextualize_config(config) };
    config.cases = config.cases.div_ceil(cost);
    let watch = Watch::start();
    let result = TestRunner::new(config).run(&strategy, |value| {
        watch.begin(&value);
        test(value);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}\nAdd the smallest input to tests/corpus once it is understood.");
    }
}

/// Ends the process and shows the input if a case does not end.
struct Watch<T>(Arc<Mutex<(Instant, T)>>);

impl<T: Clone + Default + std::fmt::Debug + Send + 'static> Watch<T> {
    fn start() -> Self {
        let current = Arc::new(Mutex::new((Instant::now(), T::default())));
        let watched = Arc::downgrade(&current);
        std::thread::spawn(move || {
            while let Some(current) = watched.upgrade() {
                let (begun, input) = current.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if begun.elapsed() > HANGS_AFTER {
                    eprintln!("it does not end: {input:?}");
                    std::process::abort();
                }
                drop(current);
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Self(current)
    }

    fn begin(&self, input: &T) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), input.clone());
    }
}

#[test]
fn every_entry_of_the_corpus_belongs_to_a_property() {
    let sources = [
        include_str!("answers.rs"),
        include_str!("configuration.rs"),
        include_str!("events.rs"),
        include_str!("functions.rs"),
        include_str!("messages.rs"),
    ];
    let folders = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).expect("the corpus");
    for folder in folders {
        let folder = folder.expect("a folder").file_name().to_string_lossy().into_owned();
        let is_used = sources.iter().any(|source| source.contains(&format!("(\"{folder}\"")));
        assert!(is_used, "no property reads tests/corpus/{folder}");
        let accepted = corpus(&folder).into_keys().filter(|name| !name.starts_with("refused")).count();
        assert!(accepted > 0, "tests/corpus/{folder} has nothing that is accepted, so changes of it reach nothing");
    }
}
