//! Reading the members of one JSON object: unknown, missing, null, of the wrong type. Pure.

use super::{invalid, quoted, reject};
use crate::rejection::Rejection;
use serde_json::{Map, Value};

/// The members of an object, all of them known.
pub struct Fields {
    members: Map<String, Value>,
    prefix: String,
}

impl Fields {
    /// `path` is the object's own name, empty for the manifest itself.
    ///
    /// # Errors
    /// `unknown_field` for the first member that is not one of `known`, with the nearest of them.
    pub fn new(members: Map<String, Value>, path: &str, known: &[&str]) -> Result<Self, Rejection> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        if let Some(unknown) = members.keys().find(|name| !known.contains(&name.as_str())) {
            let hint = nearest(unknown, known).map_or_else(
                || format!("the fields are {}", known.join(", ")),
                |name| format!("did you mean `{prefix}{name}`?"),
            );
            let field = format!("{prefix}{unknown}");
            return Err(reject("unknown_field", format!("unknown field {}; {hint}", quoted(&field))).field(field));
        }
        Ok(Self { members, prefix })
    }

    /// Takes a member that must be there; null counts as absent.
    ///
    /// # Errors
    /// `missing_field`, or what `read` finds.
    pub fn required<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str, Value) -> Result<T, Rejection>,
    ) -> Result<T, Rejection> {
        let field = format!("{}{name}", self.prefix);
        self.optional(name, read)?.ok_or_else(|| {
            reject("missing_field", format!("{} is missing; it is required", quoted(&field))).field(field)
        })
    }

    /// Takes a member that may be absent or null.
    ///
    /// # Errors
    /// What `read` finds.
    pub fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&str, Value) -> Result<T, Rejection>,
    ) -> Result<Option<T>, Rejection> {
        match self.members.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(&format!("{}{name}", self.prefix), value).map(Some),
        }
    }
}

/// A string without NUL: every string of a manifest ends up in a C string or a path.
pub fn string(field: &str, value: Value) -> Result<String, Rejection> {
    match value {
        Value::String(text) if text.contains('\0') => Err(invalid(field, "holds a NUL character; leave it out")),
        Value::String(text) => Ok(text),
        other => Err(wrong_type(field, "a string", &other)),
    }
}

/// A list of strings without NUL.
pub fn strings(field: &str, value: Value) -> Result<Vec<String>, Rejection> {
    match value {
        Value::Array(items) => {
            items.into_iter().enumerate().map(|(index, item)| string(&format!("{field}[{index}]"), item)).collect()
        }
        other => Err(wrong_type(field, "a list of strings", &other)),
    }
}

/// A whole number from `least` to `most`; `3.0` and `3e0` are whole, as JSON does not tell them from `3`.
pub fn integer(field: &str, value: &Value, least: u64, most: u64) -> Result<u64, Rejection> {
    let Value::Number(number) = value else {
        return Err(wrong_type(field, "a whole number", value));
    };
    let whole = number.as_u64().or_else(|| {
        // Below 2^53 every whole double is the integer it looks like.
        number
            .as_f64()
            .filter(|double| double.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(double))
            .map(|d| d as u64)
    });
    match whole {
        Some(whole) if (least..=most).contains(&whole) => Ok(whole),
        None if number.as_f64().is_some_and(|double| double.fract() != 0.0) => {
            Err(wrong_type(field, "a whole number", value))
        }
        _ => Err(invalid(field, format!("is {number}; it must be from {least} to {most}"))),
    }
}

/// Says what was expected and what came.
pub fn wrong_type(field: &str, expected: &str, got: &Value) -> Rejection {
    reject("wrong_type", format!("{} must be {expected}, got {}", quoted(field), kind_of(got))).field(field)
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(boolean) => format!("the boolean {boolean}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// The known name a person most likely meant: one that holds, or is held by, what they wrote, or a few edits away.
fn nearest<'a>(unknown: &str, known: &[&'a str]) -> Option<&'a str> {
    /// Names longer than this are no slip of the finger, and the comparison is quadratic.
    const LONGEST: usize = 40;
    if unknown.is_empty() || unknown.len() > LONGEST {
        return None;
    }
    let plain = |name: &str| name.to_ascii_lowercase().replace(['-', ' '], "_");
    let unknown = plain(unknown);
    let cost = |name: &str| {
        let held = unknown.len() > 1 && (name.contains(&unknown) || unknown.contains(name));
        if held { 0 } else { edits(&unknown, name) }
    };
    known
        .iter()
        .map(|&name| (cost(name), name))
        .filter(|&(cost, name)| cost <= name.len() / 3)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance over bytes.
fn edits(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distances() {
        for (a, b, expected) in
            [("", "", 0), ("a", "", 1), ("kitten", "sitting", 3), ("comand", "command", 1), ("ab", "ba", 2)]
        {
            assert_eq!(edits(a, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn suggestions() {
        let known = ["job_id", "image_hash", "command", "mount_spec", "timeout_s", "network"];
        for (unknown, expected) in [
            ("comand", Some("command")),
            ("image", Some("image_hash")),
            ("jobId", Some("job_id")),
            ("Job-ID", Some("job_id")),
            ("timeout", Some("timeout_s")),
            ("mount_specs", Some("mount_spec")),
            ("priority", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(unknown, &known), expected, "{unknown}");
        }
        assert_eq!(nearest(&"command".repeat(20), &known), None);
    }
}
