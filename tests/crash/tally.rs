//! What was covered: states by scenario, by what was unsynced, and by how they were chosen.

use std::collections::BTreeMap;
use std::fmt;

/// How a state was chosen, or what came of it where that may differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// One of all combinations of old, new and garbage.
    Exhaustive,
    /// One sector unlike all others; first and last parts.
    Systematic,
    Random,
    /// Beyond what the format assumes of a medium: nothing was lost.
    BeyondFine,
    /// The same: refused.
    BeyondRefused,
    /// A durable frame was damaged, too: refused.
    DamageRefused,
    /// A sector of the last durable frame became zeros: a torn tail, as documented.
    DamageResidue,
}

const HEADINGS: [&str; 7] =
    ["exhaustive", "systematic", "random", "beyond:fine", "beyond:refused", "damage:refused", "damage:residue"];

#[derive(Default)]
pub struct Tally {
    rows: BTreeMap<(&'static str, String), [u64; HEADINGS.len()]>,
    /// States in which something is so, by what.
    pub facts: BTreeMap<&'static str, u64>,
}

impl Tally {
    pub fn count(&mut self, scenario: &'static str, unsynced: &str, column: Column) {
        match self.rows.get_mut(&(scenario, unsynced.to_owned())) {
            Some(row) => row[column as usize] += 1,
            None => self.rows.entry((scenario, unsynced.to_owned())).or_default()[column as usize] += 1,
        }
    }

    pub fn note(&mut self, fact: &'static str, so: bool) {
        *self.facts.entry(fact).or_default() += u64::from(so);
    }

    pub fn states(&self) -> u64 {
        self.rows.values().flatten().sum()
    }

    pub fn of_column(&self, column: Column) -> u64 {
        self.rows.values().map(|row| row[column as usize]).sum()
    }

    /// States in which `kind` was unsynced, alone or among other things.
    pub fn of_kind(&self, scenario: &str, kind: &str) -> u64 {
        let of = |(at, unsynced): &&(&str, String)| *at == scenario && unsynced.split(" + ").any(|part| part == kind);
        self.rows.iter().filter(|(key, _)| of(key)).flat_map(|(_, row)| row).sum()
    }

    pub fn add(&mut self, other: &Self) {
        for (key, row) in &other.rows {
            let sum = self.rows.entry(key.clone()).or_default();
            sum.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        }
        for (fact, n) in &other.facts {
            *self.facts.entry(fact).or_default() += n;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<20} {:<42}", "scenario", "unsynced at the cut")?;
        HEADINGS.iter().try_for_each(|heading| write!(f, " {heading:>14}"))?;
        let mut sums = [0; HEADINGS.len()];
        for ((scenario, unsynced), row) in &self.rows {
            write!(f, "\n{scenario:<20} {unsynced:<42}")?;
            row.iter().try_for_each(|n| write!(f, " {n:>14}"))?;
            sums.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
        }
        write!(f, "\n{:<63}", "sum")?;
        sums.iter().try_for_each(|n| write!(f, " {n:>14}"))?;
        self.facts.iter().try_for_each(|(fact, n)| write!(f, "\n{fact}: {n}"))
    }
}
