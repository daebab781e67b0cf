//! RFC 8785, the JSON Canonicalization Scheme: one byte string for one JSON value. Pure.

use serde_json::Value;
use std::fmt;

/// Nesting above this is refused; the same bound as the JSON parser's, so whatever was parsed can be written.
pub const MAX_DEPTH: usize = 128;

/// Why a value has no canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CanonicalError {
    /// An integer that no IEEE 754 double holds exactly. The RFC would round it; evidence must not change a number silently.
    InexactInteger(String),
    /// Nested deeper than [`MAX_DEPTH`].
    TooDeep,
}

impl fmt::Display for CanonicalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InexactInteger(number) => write!(f, "{number} is not exact as a double; write it as a string"),
            Self::TooDeep => write!(f, "nested deeper than {MAX_DEPTH} levels"),
        }
    }
}

impl std::error::Error for CanonicalError {}

/// The canonical bytes (UTF-8) of `value`: keys sorted by UTF-16 code units, no white space, numbers as ECMAScript writes them.
///
/// # Errors
/// [`CanonicalError`]: an integer beyond what a double holds exactly, or nesting beyond [`MAX_DEPTH`].
pub fn to_canonical(value: &Value) -> Result<Vec<u8>, CanonicalError> {
    let mut out = String::new();
    write_value(&mut out, value, 0)?;
    Ok(out.into_bytes())
}

fn write_value(out: &mut String, value: &Value, depth: usize) -> Result<(), CanonicalError> {
    if depth > MAX_DEPTH {
        return Err(CanonicalError::TooDeep);
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(true) => out.push_str("true"),
        Value::Bool(false) => out.push_str("false"),
        Value::Number(number) => write_number(out, number)?,
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(out, item, depth + 1)?;
            }
            out.push(']');
        }
        Value::Object(members) => {
            // UTF-16 order differs from UTF-8 order where a surrogate pair meets U+E000..U+FFFF.
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
            out.push('{');
            for (index, (key, member)) in sorted.into_iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_string(out, key);
                out.push(':');
                write_value(out, member, depth + 1)?;
            }
            out.push('}');
        }
    }
    Ok(())
}

fn write_number(out: &mut String, number: &serde_json::Number) -> Result<(), CanonicalError> {
    let inexact = || CanonicalError::InexactInteger(number.to_string());
    let double = number.as_f64().ok_or_else(inexact)?;
    // Going back through i128 is exact for every 64-bit integer, which `as u64` is not (it saturates).
    let exact = match (number.as_u64(), number.as_i64()) {
        (Some(unsigned), _) => double as i128 == i128::from(unsigned),
        (None, Some(signed)) => double as i128 == i128::from(signed),
        (None, None) => double.is_finite(),
    };
    let mut buffer = ryu_js::Buffer::new();
    let written = buffer.format_finite(double);
    // The second test lets canonical text be parsed and written again: 2^62 is written 4611686018427388000.
    if !exact && written != number.to_string() {
        return Err(inexact());
    }
    out.push_str(written);
    Ok(())
}

fn write_string(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\u{8}' => out.push_str("\\b"),
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\u{c}' => out.push_str("\\f"),
            '\r' => out.push_str("\\r"),
            control if control < ' ' => out.push_str(&format!("\\u{:04x}", u32::from(control))),
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(to_canonical(value).unwrap()).unwrap()
    }

    /// RFC 8785 §3.2.2: the sample object as the RFC writes it, and what it becomes with its keys sorted (§3.2.3).
    const SAMPLE: &str = r#"{
        "numbers": [333333333.33333329, 1E30, 4.50,
                    2e-3, 0.000000000000000000000000001],
        "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
        "literals": [null, true, false]
    }"#;

    /// RFC 8785 §3.2.4: the bytes of the sample's canonical form.
    const SAMPLE_BYTES: &str = "
        7b 22 6c 69 74 65 72 61 6c 73 22 3a 5b 6e 75 6c 6c 2c 74 72
        75 65 2c 66 61 6c 73 65 5d 2c 22 6e 75 6d 62 65 72 73 22 3a
        5b 33 33 33 33 33 33 33 33 33 2e 33 33 33 33 33 33 33 2c 31
        65 2b 33 30 2c 34 2e 35 2c 30 2e 30 30 32 2c 31 65 2d 32 37
        5d 2c 22 73 74 72 69 6e 67 22 3a 22 e2 82 ac 24 5c 75 30 30
        30 66 5c 6e 41 27 42 5c 22 5c 5c 5c 5c 5c 22 2f 22 7d";

    #[test]
    fn rfc_sample() {
        let value: Value = serde_json::from_str(SAMPLE).unwrap();
        assert_eq!(
            text(&value),
            r#"{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],"string":"€$\u000f\nA'B\"\\\\\"/"}"#
        );
        let bytes: Vec<u8> =
            SAMPLE_BYTES.split_whitespace().map(|digits| u8::from_str_radix(digits, 16).unwrap()).collect();
        assert_eq!(to_canonical(&value).unwrap(), bytes);
    }

    /// RFC 8785 §3.2.3: keys sort by UTF-16 code units, so the emoji (a surrogate pair) precedes U+FB33.
    #[test]
    fn rfc_key_order() {
        let value: Value = serde_json::from_str(
            r#"{
                "\u20ac": "Euro Sign",
                "\r": "Carriage Return",
                "\ufb33": "Hebrew Letter Dalet With Dagesh",
                "1": "One",
                "\ud83d\ude00": "Emoji: Grinning Face",
                "\u0080": "Control",
                "\u00f6": "Latin Small Letter O With Diaeresis"
            }"#,
        )
        .unwrap();
        let expected = [
            r#"{"\r":"Carriage Return","1":"One","#,
            "\"\u{80}\":\"Control\",\"\u{f6}\":\"Latin Small Letter O With Diaeresis\",",
            "\"\u{20ac}\":\"Euro Sign\",\"\u{1f600}\":\"Emoji: Grinning Face\",",
            "\"\u{fb33}\":\"Hebrew Letter Dalet With Dagesh\"}",
        ];
        assert_eq!(text(&value), expected.concat());
    }

    /// RFC 8785 appendix B, all of it, by the bits of the double.
    #[test]
    fn rfc_numbers() {
        let table: [(u64, &str); 24] = [
            (0x0000000000000000, "0"),
            (0x8000000000000000, "0"),
            (0x0000000000000001, "5e-324"),
            (0x8000000000000001, "-5e-324"),
            (0x7fefffffffffffff, "1.7976931348623157e+308"),
            (0xffefffffffffffff, "-1.7976931348623157e+308"),
            (0x4340000000000000, "9007199254740992"),
            (0xc340000000000000, "-9007199254740992"),
            (0x4430000000000000, "295147905179352830000"),
            (0x44b52d02c7e14af5, "9.999999999999997e+22"),
            (0x44b52d02c7e14af6, "1e+23"),
            (0x44b52d02c7e14af7, "1.0000000000000001e+23"),
            (0x444b1ae4d6e2ef4e, "999999999999999700000"),
            (0x444b1ae4d6e2ef4f, "999999999999999900000"),
            (0x444b1ae4d6e2ef50, "1e+21"),
            (0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"),
            (0x3eb0c6f7a0b5ed8d, "0.000001"),
            (0x41b3de4355555553, "333333333.3333332"),
            (0x41b3de4355555554, "333333333.33333325"),
            (0x41b3de4355555555, "333333333.3333333"),
            (0x41b3de4355555556, "333333333.3333334"),
            (0x41b3de4355555557, "333333333.33333343"),
            (0xbecbf647612f3696, "-0.0000033333333333333333"),
            (0x43143ff3c1cb0959, "1424953923781206.2"),
        ];
        for (bits, expected) in table {
            assert_eq!(text(&json!(f64::from_bits(bits))), expected, "{bits:016x}");
        }
        // The table's two rows without a text: they are an error, and already so where a number is made or read.
        for bits in [0x7fffffffffffffff, 0x7ff0000000000000] {
            assert_eq!(serde_json::Number::from_f64(f64::from_bits(bits)), None, "{bits:016x}");
        }
        for text in ["NaN", "Infinity", "-Infinity", "1e400"] {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn integers_are_exact_or_refused() {
        assert_eq!(
            text(&json!([0, -1, 9_007_199_254_740_992_u64, -9_007_199_254_740_992_i64])),
            "[0,-1,9007199254740992,-9007199254740992]"
        );
        for inexact in [json!(9_007_199_254_740_993_u64), json!(u64::MAX), json!(i64::MIN + 1)] {
            assert!(matches!(to_canonical(&inexact), Err(CanonicalError::InexactInteger(_))), "{inexact}");
        }
        for exact in [json!(1_u64 << 62), json!(1e18), json!(1e20), json!(i64::MIN)] {
            let once = text(&exact);
            assert_eq!(text(&serde_json::from_str(&once).unwrap()), once, "canonical text is a fixed point");
        }
        assert_eq!(
            text(&json!(i64::MIN)),
            "-9223372036854776000",
            "a power of two is exact; its shortest digits are ECMAScript's"
        );
    }

    #[test]
    fn every_control_character_is_escaped_and_nothing_else() {
        let all: String = ('\0'..='\u{a0}').collect();
        let written = text(&json!(all));
        assert!(written.chars().all(|c| c >= ' '), "{written}");
        assert_eq!(serde_json::from_str::<String>(&written).unwrap(), all);
        assert!(written.contains("\\u0000") && written.contains("\\u001f") && written.contains('\u{7f}'));
        assert_eq!(text(&json!("/")), "\"/\"");
    }

    #[test]
    fn depth_is_bounded() {
        let nest = |levels| (0..levels).fold(json!(1), |inner, _| json!([inner]));
        assert!(to_canonical(&nest(MAX_DEPTH)).is_ok());
        assert_eq!(to_canonical(&nest(MAX_DEPTH + 1)), Err(CanonicalError::TooDeep));
    }
}
