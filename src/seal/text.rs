//! How bytes of a path and mode bits are written in JSON, without loss. Pure.

/// A path as text: valid UTF-8 stands for itself, `%` is `%25`, every other byte is `%` and two upper-case hex digits.
/// Two different paths have two different texts.
pub fn encode(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        text.push_str(&chunk.valid().replace('%', "%25"));
        for byte in chunk.invalid() {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

/// Longest path that a person is shown whole, in bytes: a payload may make paths of half a megabyte.
const SHOWN_MAX: usize = 400;

/// The same for a message: what is too long is cut in the middle, where it tells least.
pub fn shown(path: &[u8]) -> String {
    let text = encode(path);
    if text.len() <= SHOWN_MAX {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(SHOWN_MAX / 2), text.ceil_char_boundary(text.len() - SHOWN_MAX / 2));
    format!("{}…{}", &text[..head], &text[tail..])
}

/// The bytes that [`encode`] wrote as `text`; `None` where it cannot have been written by it.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    let mut path = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    path.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let (digits, rest) = part.split_at_checked(2)?;
        path.push(u8::from_str_radix(digits, 16).ok()?);
        path.extend_from_slice(rest.as_bytes());
    }
    // One path, one text: `%41` for `A`, or `%2b`, is not ours.
    (encode(&path) == text).then_some(path)
}

/// Serde for a path.
pub(crate) mod path {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(path: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::encode(path))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::decode(&text).ok_or_else(|| D::Error::custom("a path is UTF-8 with other bytes and `%` written %XX"))
    }
}

/// Serde for a path that may be absent.
pub(crate) mod optional_path {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(path: &Option<Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        match path {
            Some(path) => serializer.serialize_str(&super::encode(path)),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<u8>>, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?;
        text.map(|text| super::decode(&text).ok_or_else(|| D::Error::custom("not a path's text"))).transpose()
    }
}

/// Serde for mode bits as octal digits, at least four.
pub(crate) mod octal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(mode: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{mode:04o}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        u32::from_str_radix(&String::deserialize(deserializer)?, 8).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_round_trip() {
        for (path, text) in [
            (&b"a/b c.txt"[..], "a/b c.txt"),
            ("ä/😀".as_bytes(), "ä/😀"),
            (b"100%", "100%25"),
            (b"%41", "%2541"),
            (b"\xff\xfe/x", "%FF%FE/x"),
            (b"caf\xc3", "caf%C3"),
            (b"a\nb\\\"", "a\nb\\\""),
            (b"", ""),
        ] {
            assert_eq!(encode(path), text);
            assert_eq!(decode(text).as_deref(), Some(path), "{text}");
        }
        let every_byte: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&every_byte)), Some(every_byte));
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in ["%", "%4", "%41", "%ff", "%GG", "%+1", "a%C3%A4", "%é"] {
            assert_eq!(decode(text), None, "{text}");
        }
    }
}
