//! JSON without its ambiguities: a key given twice is an error at every level, not a silent choice. Pure.

use super::{quoted, reject};
use crate::rejection::Rejection;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use std::cell::{Cell, RefCell};
use std::fmt;

/// Most JSON values in a body. A manifest at all its limits has about 3000; lists of zeros would take 32 times their size.
const MAX_VALUES: usize = 32_768;

/// The one JSON value in `body`.
///
/// # Errors
/// 400 `not_json` with line and column (also for nesting beyond serde_json's 128 levels and text after the value);
/// 400 `duplicate_field` naming the path of a key that is given twice in one object; 400 `too_many_values`.
pub fn parse(body: &[u8]) -> Result<Value, Rejection> {
    let duplicate = RefCell::new(None);
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let values = Cell::new(0);
    let parsed = Strict { duplicate: &duplicate, values: &values }.deserialize(&mut deserializer);
    parsed.and_then(|value| deserializer.end().map(|()| value)).map_err(|error| match duplicate.take() {
        Some(path) => reject(
            "duplicate_field",
            format!(
                "{} is given twice (line {}, column {}); give it once",
                quoted(&path),
                error.line(),
                error.column()
            ),
        )
        .field(path),
        None if values.get() > MAX_VALUES => {
            reject("too_many_values", format!("the body has over {MAX_VALUES} JSON values; no manifest needs as many"))
        }
        None => reject("not_json", format!("the body is not JSON: {error}; send one JSON object")),
    })
}

/// Builds a `Value`. `duplicate` becomes the path of the key given twice; it grows from the inside out while the error
/// passes up, so that sound input, however long its keys, costs nothing for it.
#[derive(Clone, Copy)]
struct Strict<'a> {
    duplicate: &'a RefCell<Option<String>>,
    /// How many values have begun.
    values: &'a Cell<usize>,
}

impl Strict<'_> {
    fn below(&self, parent: &str) {
        if let Some(path) = self.duplicate.borrow_mut().as_mut() {
            let dot = if path.starts_with('[') { "" } else { "." };
            *path = format!("{parent}{dot}{path}");
        }
    }
}

impl<'de> DeserializeSeed<'de> for Strict<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > MAX_VALUES {
            return Err(de::Error::custom("too many values"));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("number out of range"))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_string<E: de::Error>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) =
            items.next_element_seed(self).inspect_err(|_| self.below(&format!("[{}]", list.len())))?
        {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = members.next_key::<String>()? {
            if map.contains_key(&key) {
                *self.duplicate.borrow_mut() = Some(key);
                return Err(de::Error::custom("duplicate key"));
            }
            let value = members.next_value_seed(self).inspect_err(|_| self.below(&key))?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_serde_json_on_sound_input() {
        for text in [
            r#"{"a":[1,-2,2.5,"x",true,false,null,{"b":{}}],"c":""}"#,
            "[]",
            "\"\\u00e9\"",
            " 3 ",
            "18446744073709551615",
        ] {
            assert_eq!(parse(text.as_bytes()).unwrap(), serde_json::from_str::<Value>(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn duplicates_are_refused_at_every_level() {
        for (text, field) in [
            (r#"{"a":1,"a":1}"#, "a"),
            (r#"{"a":1,"\u0061":2}"#, "a"),
            (r#"{"e":{"X":"1","X":"1"}}"#, "e.X"),
            (r#"{"l":[0,{"k":1,"k":2}]}"#, "l[1].k"),
        ] {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!(
                (error.status, error.code, error.field.as_deref()),
                (400, "duplicate_field", Some(field)),
                "{text}"
            );
            assert!(error.message.contains("line 1, column"), "{}", error.message);
        }
        assert!(
            parse(br#"{"a":{"k":1},"b":{"k":1},"k":1}"#).is_ok(),
            "the same key in different objects is no duplicate"
        );
    }

    #[test]
    fn values_are_counted_at_every_level() {
        let list = |n: usize| format!("[{}0]", "0,".repeat(n - 1));
        assert!(parse(list(MAX_VALUES - 1).as_bytes()).is_ok());
        let nested = format!(r#"{{"a":{0},"b":{{"c":{0}}}}}"#, list(MAX_VALUES / 2));
        for text in [list(MAX_VALUES), nested] {
            assert_eq!(parse(text.as_bytes()).unwrap_err().code, "too_many_values");
        }
    }

    #[test]
    fn broken_json_is_refused_with_its_place() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        for text in
            ["", "{", "{\"a\":}", "{'a':1}", "{} {}", "nul", "{\"a\":1e999}", "\"\\ud800\"", "[1,]", "NaN", &deep]
        {
            let error = parse(text.as_bytes()).unwrap_err();
            assert_eq!((error.status, error.code), (400, "not_json"), "{text}");
            assert!(error.message.contains(" at line 1 column "), "{}", error.message);
        }
        assert_eq!(parse(b"\"\xff\"").unwrap_err().code, "not_json");
    }
}
