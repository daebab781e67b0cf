//! Takes configured tokens out of texts that are shown: a client may put one in the wrong place, and an error that repeats
//! what was sent, or the log, would carry it on.
//!
//! Of each token it knows the length, a fingerprint and the SHA-256, not the token. The fingerprint rolls over the text; its
//! key is drawn when the tokens are read, so nobody can choose texts that collide.

use std::borrow::Cow;
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::ops::Range;

use crate::hash::Hash;

/// What stands in a token's place.
const INSTEAD: &str = "[token]";
/// A Mersenne prime: fingerprints are polynomials over its field.
const PRIME: u64 = (1 << 61) - 1;

/// Knows tokens when it sees them.
#[derive(Debug, Default)]
pub struct Mask {
    base: u64,
    /// By length: fingerprints, and what they belong to.
    by_length: BTreeMap<usize, HashMap<u64, Hash>>,
}

impl Mask {
    /// Finds each of `tokens`, also in lower case as a host, escaped as messages show texts, and with blanks for the `+` of
    /// a query.
    pub fn new(tokens: &[String]) -> Self {
        let base = RandomState::new().hash_one(0) % (PRIME - 2) + 2;
        let mut mask = Self { base, by_length: BTreeMap::new() };
        for token in tokens {
            let decoded = token.replace('+', " ");
            for form in [token.clone(), token.to_ascii_lowercase(), token.escape_debug().to_string(), decoded] {
                let print = form.bytes().fold(0, |print, byte| mask.roll(print, byte));
                mask.by_length.entry(form.len()).or_default().insert(print, Hash::of(form.as_bytes()));
            }
        }
        mask
    }

    /// The text without tokens.
    pub fn apply<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut found: Vec<Range<usize>> = Vec::new();
        for (length, prints) in &self.by_length {
            found.extend(self.find(text.as_bytes(), *length, prints));
        }
        if found.is_empty() {
            return Cow::Borrowed(text);
        }
        found.sort_unstable_by_key(|range| (range.start, range.end));
        let (mut masked, mut at) = (String::with_capacity(text.len()), 0);
        for range in found {
            if range.start >= at {
                masked.push_str(&text[at..range.start]);
                masked.push_str(INSTEAD);
            }
            // One that overlaps the last is covered with it.
            at = at.max(range.end);
        }
        masked.push_str(&text[at..]);
        Cow::Owned(masked)
    }

    /// Where something of this length is a token. A token is UTF-8, so it begins and ends between characters.
    fn find(&self, text: &[u8], length: usize, prints: &HashMap<u64, Hash>) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let leading = (1..length).fold(1, |power, _| multiply(power, self.base));
        let mut print = 0;
        for (end, byte) in (1..).zip(text) {
            if end > length {
                let gone = multiply(u64::from(text[end - length - 1]) + 1, leading);
                print = (print + PRIME - gone) % PRIME;
            }
            print = self.roll(print, *byte);
            if end >= length
                && let Some(hash) = prints.get(&print)
                && Hash::of(&text[end - length..end]) == *hash
            {
                found.push(end - length..end);
            }
        }
        found
    }

    fn roll(&self, print: u64, byte: u8) -> u64 {
        (multiply(print, self.base) + u64::from(byte) + 1) % PRIME
    }
}

fn multiply(a: u64, b: u64) -> u64 {
    (u128::from(a) * u128::from(b) % u128::from(PRIME)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_found_wherever_they_stand_and_nothing_else_is() {
        let tokens = ["S3cret/Token+=".to_owned(), "abcabc".to_owned(), "q\"uote".to_owned(), "münze".to_owned()];
        let mask = Mask::new(&tokens);
        for (text, masked) in [
            ("", ""),
            ("nothing of it", "nothing of it"),
            ("S3cret/Token+=", "[token]"),
            ("after=\"xS3cret/Token+=y\" must be", "after=\"x[token]y\" must be"),
            ("s3cret/token+=", "[token]"),
            ("S3cret/Token =", "[token]"),
            ("S3cret/Token+", "S3cret/Token+"),
            ("abcabcabc", "[token]"),
            ("abcabc abcabc", "[token] [token]"),
            ("abcab", "abcab"),
            (&format!("{:?}", "q\"uote"), "\"[token]\""),
            ("ä münze ö", "ä [token] ö"),
        ] {
            assert_eq!(mask.apply(text), masked, "{text}");
        }
        assert_eq!(Mask::default().apply("S3cret/Token+="), "S3cret/Token+=");
    }

    #[test]
    fn every_place_in_a_long_text_is_looked_at() {
        let mask = Mask::new(&["needle-needle".to_owned()]);
        for at in [0, 1, 12, 13, 500, 987] {
            let mut text = "n".repeat(1000);
            text.replace_range(at..at + 13, "needle-needle");
            assert_eq!(mask.apply(&text).len(), 1000 - 13 + INSTEAD.len(), "{at}");
        }
    }
}
