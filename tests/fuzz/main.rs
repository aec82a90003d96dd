//! Everything that reads what others wrote, on the entries of `tests/corpus` and on changed copies of them: it never
//! panics, it ends, what it accepts keeps the rules, and what it writes reads as the same.
//!
//! Each folder of the corpus belongs to one property. A file whose name begins with `refused` must be refused, every other
//! one accepted. `PROPTEST_CASES` sets the number of changed copies, `PROPTEST_RNG_SEED` which ones.

mod answers;
mod configuration;
mod events;
mod functions;
mod messages;
mod mutate;
