//! Tables over [`parse`]: what passes and in which canonical form, what is refused and in which words.

#![allow(clippy::unwrap_used)]

use super::*;

/// A sound manifest with `member` added, or put in place of the field of that name.
fn with(member: &str) -> String {
    let name = member.split('"').nth(1).unwrap();
    let base = [r#""job_id":"j""#, r#""image_hash":"busybox""#, r#""command":["true"]"#];
    let kept = base.into_iter().filter(|have| !have.starts_with(&format!("\"{name}\":")));
    format!("{{{}}}", kept.chain([member]).collect::<Vec<_>>().join(","))
}

fn refused(body: &str) -> Rejection {
    match parse(body.as_bytes()) {
        Err(rejection) => rejection,
        Ok(parsed) => panic!("accepted: {}", parsed.canonical),
    }
}

#[test]
fn a_full_manifest() {
    let body = br#"{
        "network": "bridge", "max_attempts": 5.0, "timeout_s": 3600, "resources": {"memory_mib": 512, "cpus": 1.50, "pids": null},
        "depends_on": ["b", "a"], "env": {"Z": "1", "A_1": "\u00e9"}, "mount_spec": ["/d/x:/job/workdir:rw", "/d/y:/in:ro", "job:a:/parent"],
        "command": ["python", "-c", "print(1)"], "image_hash": "python:3.9-slim", "job_id": "job_9999_chaos_test"}"#;
    let parsed = parse(body).unwrap();
    assert_eq!(
        parsed.canonical,
        concat!(
            r#"{"command":["python","-c","print(1)"],"depends_on":["b","a"],"env":{"A_1":"é","Z":"1"},"image_hash":"python:3.9-slim","#,
            r#""job_id":"job_9999_chaos_test","max_attempts":5,"mount_spec":["/d/x:/job/workdir","/d/y:/in:ro","job:a:/parent"],"#,
            r#""network":"bridge","resources":{"cpus":1.5,"memory_mib":512},"timeout_s":3600}"#
        )
    );
    let manifest = &parsed.manifest;
    assert_eq!(manifest.command, ["python", "-c", "print(1)"]);
    assert_eq!((manifest.timeout_s, manifest.max_attempts, manifest.network), (Some(3600), 5, Network::Bridge));
    assert_eq!(manifest.resources, Resources { cpus: Some(1.5), memory_mib: Some(512), pids: None, gpus: None });
    assert_eq!(manifest.mounts.iter().map(Mount::mode).collect::<Vec<_>>(), ["rw", "ro", "ro"]);
    assert_eq!(manifest.parents().into_iter().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(parsed.hash, Hash::of(parsed.canonical.as_bytes()));
}

#[test]
fn defaults_are_filled_in_but_not_written() {
    let parsed =
        parse(br#"{"job_id":"j","image_hash":"busybox","command":["true"],"env":null,"network":null}"#).unwrap();
    assert_eq!(parsed.canonical, r#"{"command":["true"],"image_hash":"busybox","job_id":"j"}"#);
    assert_eq!((parsed.manifest.max_attempts, parsed.manifest.timeout_s), (DEFAULT_MAX_ATTEMPTS, None));
    assert!(parsed.manifest.mounts.is_empty() && parsed.manifest.env.is_empty());
    assert_eq!(parsed.manifest.network, Network::None);
}

#[test]
fn canonical_text_is_a_fixed_point() {
    let long = format!(r#""command":["{}"]"#, "x".repeat(MAX_ARGUMENT_BYTES));
    for member in [
        r#""mount_spec":"/a:/b""#,
        r#""mount_spec":["/a:/b:rw","/c:/d:ro"]"#,
        r#""mount_spec":[]"#,
        r#""env":{}"#,
        r#""env":{"A":"\u0001\u007f\n\"\\"}"#,
        r#""resources":{}"#,
        r#""resources":{"cpus":0.01}"#,
        r#""resources":{"cpus":0.123}"#,
        r#""resources":{"cpus":65536,"memory_mib":1073741824,"pids":1,"gpus":0}"#,
        r#""resources":{"cpus":1.2999999999999998}"#,
        r#""timeout_s":31536000"#,
        r#""timeout_s":1e3"#,
        r#""max_attempts":100"#,
        r#""command":["a","","é😀"]"#,
        &long,
    ] {
        let first = parse(with(member).as_bytes()).unwrap();
        let second = parse(first.canonical.as_bytes()).unwrap();
        assert_eq!(first, second, "{member}");
    }
    let string = parse(with(r#""mount_spec":"/a:/b:rw""#).as_bytes()).unwrap();
    let list = parse(with(r#""mount_spec":["/a:/b"]"#).as_bytes()).unwrap();
    assert_eq!(string.hash, list.hash, "two spellings of one mount are one manifest");
}

#[test]
fn every_thousandth_of_a_cpu_is_stable() {
    for thousandths in (10..70_000).step_by(7) {
        let text = format!(r#""resources":{{"cpus":{}.{:03}}}"#, thousandths / 1000, thousandths % 1000);
        let first = parse(with(&text).as_bytes()).unwrap();
        assert_eq!(first.manifest.resources.cpus, Some(f64::from(thousandths) / 1000.0));
        assert_eq!(parse(first.canonical.as_bytes()).unwrap().hash, first.hash, "{text}");
    }
}

#[test]
fn not_an_object() {
    for body in ["", "{", "not json", "{}{}"] {
        assert_eq!(refused(body).code, "not_json", "{body}");
    }
    assert!(refused("{\n  \"a\": ,").message.contains("line 2 column 8"));
    for body in ["[]", "1", "\"x\"", "null"] {
        assert_eq!(refused(body).code, "not_an_object", "{body}");
    }
    assert_eq!(refused(&format!("\"{}\"", "x".repeat(MAX_BODY_BYTES))).code, "too_large");
}

#[test]
fn missing_fields() {
    for (body, field) in [
        ("{}", "job_id"),
        (r#"{"job_id":"j","command":["a"]}"#, "image_hash"),
        (r#"{"job_id":"j","image_hash":"b"}"#, "command"),
        (r#"{"job_id":null,"image_hash":"b","command":["a"]}"#, "job_id"),
    ] {
        let rejection = refused(body);
        assert_eq!((rejection.code, rejection.field.as_deref()), ("missing_field", Some(field)), "{body}");
    }
}

#[test]
fn unknown_fields_are_named_with_the_nearest() {
    for (member, field, says) in [
        (r#""comand":["a"]"#, "comand", "did you mean `command`?"),
        (r#""image":"b""#, "image", "did you mean `image_hash`?"),
        (r#""resources":{"memory":1}"#, "resources.memory", "did you mean `resources.memory_mib`?"),
        (r#""resources":{"disk":1}"#, "resources.disk", "the fields are cpus, memory_mib, pids, gpus"),
        (r#""priority":1"#, "priority", "the fields are job_id, image_hash"),
        (r#""priority":null"#, "priority", "the fields are"),
    ] {
        let rejection = refused(&with(member));
        assert_eq!((rejection.status, rejection.code, rejection.field.as_deref()), (400, "unknown_field", Some(field)));
        assert!(rejection.message.contains(says), "{}", rejection.message);
    }
}

#[test]
fn wrong_types_say_expected_and_got() {
    for (member, field, says) in [
        (r#""job_id":7"#, "job_id", "must be a string, got the number 7"),
        (r#""image_hash":["a"]"#, "image_hash", "must be a string, got a list"),
        (r#""command":"ls -l""#, "command", "must be a list of strings, got the string `ls -l`"),
        (r#""command":["a",1]"#, "command[1]", "must be a string, got the number 1"),
        (r#""command":["a",null]"#, "command[1]", "must be a string, got null"),
        (r#""mount_spec":{}"#, "mount_spec", "list of such strings, got an object"),
        (r#""mount_spec":[true]"#, "mount_spec[0]", "got the boolean true"),
        (r#""env":["A=1"]"#, "env", "must be an object of strings, got a list"),
        (r#""env":{"A":1}"#, "env.A", "must be a string, got the number 1"),
        (r#""env":{"A":null}"#, "env.A", "must be a string, got null"),
        (r#""depends_on":"a""#, "depends_on", "must be a list of strings"),
        (r#""resources":4"#, "resources", "must be an object, got the number 4"),
        (r#""resources":{"cpus":"2"}"#, "resources.cpus", "got the string `2`"),
        (r#""resources":{"memory_mib":1.5}"#, "resources.memory_mib", "a whole number, got the number 1.5"),
        (r#""timeout_s":"1h""#, "timeout_s", "a whole number, got the string `1h`"),
        (r#""max_attempts":2.5"#, "max_attempts", "a whole number, got the number 2.5"),
        (r#""network":false"#, "network", "must be a string, got the boolean false"),
    ] {
        let rejection = refused(&with(member));
        assert_eq!(
            (rejection.status, rejection.code, rejection.field.as_deref()),
            (400, "wrong_type", Some(field)),
            "{member}"
        );
        assert!(rejection.message.contains(says), "{}", rejection.message);
    }
}

#[test]
fn invalid_values_say_what_to_change() {
    let many = format!(r#""command":[{}]"#, vec!["\"x\""; 257].join(","));
    let ids = format!(r#""depends_on":[{}]"#, (0..1025).map(|i| format!("\"d{i}\"")).collect::<Vec<_>>().join(","));
    let variables =
        format!(r#""env":{{{}}}"#, (0..1025).map(|i| format!("\"V{i}\":\"\"")).collect::<Vec<_>>().join(","));
    for (member, field, says) in [
        (r#""job_id":"""#, "job_id", "begins with a letter or digit"),
        (r#""job_id":"../x""#, "job_id", "begins with a letter or digit"),
        (r#""job_id":"a\u0000""#, "job_id", "NUL"),
        (r#""image_hash":"-- --privileged""#, "image_hash", "no image reference"),
        (r#""image_hash":"sha256:abc""#, "image_hash", "64 lower-case hex"),
        (r#""command":[]"#, "command", "is empty"),
        (r#""command":["","a"]"#, "command[0]", "names the program"),
        (r#""command":["a","b\u0000c"]"#, "command[1]", "NUL"),
        (&many, "command", "has 257 strings; at most 256"),
        (r#""env":{"":"x"}"#, "env", "[A-Za-z_][A-Za-z0-9_]*"),
        (r#""env":{"1A":"x"}"#, "env", "`1A`"),
        (r#""env":{"A-B":"x"}"#, "env", "`A-B`"),
        (r#""env":{"A=B":"x"}"#, "env", "`A=B`"),
        (r#""env":{"É":"x"}"#, "env", "`É`"),
        (r#""env":{"A":"x\u0000"}"#, "env.A", "NUL"),
        (&variables, "env", "has 1025 entries"),
        (r#""depends_on":["a","-b"]"#, "depends_on[1]", "begins with a letter or digit"),
        (r#""depends_on":["j"]"#, "depends_on[0]", "own id"),
        (r#""depends_on":["a","a"]"#, "depends_on[1]", "second time"),
        (&ids, "depends_on", "has 1025 ids"),
        (r#""resources":{"cpus":0}"#, "resources.cpus", "from 0.01 to 65536"),
        (r#""resources":{"cpus":-1}"#, "resources.cpus", "from 0.01"),
        (r#""resources":{"cpus":1e300}"#, "resources.cpus", "from 0.01"),
        (r#""resources":{"cpus":1.2345}"#, "resources.cpus", "three decimals"),
        (r#""resources":{"memory_mib":5}"#, "resources.memory_mib", "from 6 to"),
        (r#""resources":{"memory_mib":-6}"#, "resources.memory_mib", "from 6 to"),
        (r#""resources":{"memory_mib":18446744073709551615}"#, "resources.memory_mib", "from 6 to"),
        (r#""resources":{"pids":0}"#, "resources.pids", "from 1 to"),
        (r#""resources":{"gpus":-1}"#, "resources.gpus", "from 0 to"),
        (r#""resources":{"gpus":1e30}"#, "resources.gpus", "from 0 to"),
        (r#""timeout_s":0"#, "timeout_s", "from 1 to 31536000"),
        (r#""timeout_s":31536001"#, "timeout_s", "from 1 to 31536000"),
        (r#""max_attempts":0"#, "max_attempts", "from 1 to 100"),
        (r#""max_attempts":101"#, "max_attempts", "from 1 to 100"),
        (r#""network":"host""#, "network", "`none` or `bridge`"),
    ] {
        let rejection = refused(&with(member));
        assert_eq!(
            (rejection.status, rejection.code, rejection.field.as_deref()),
            (400, "invalid_value", Some(field)),
            "{member}"
        );
        assert!(rejection.message.contains(says), "{}", rejection.message);
    }
}

#[test]
fn mounts_are_refused() {
    let many = format!(r#""mount_spec":[{}]"#, (0..17).map(|i| format!("\"/a:/m{i}\"")).collect::<Vec<_>>().join(","));
    for (member, field, says) in [
        (r#""mount_spec":"/a""#, "mount_spec", "write HOST:CONTAINER"),
        (r#""mount_spec":["/a:/w","b:/x"]"#, "mount_spec[1]", "absolute"),
        (r#""mount_spec":["/a:/w","/b:/w"]"#, "mount_spec[1]", "another mount has `/w`"),
        (r#""mount_spec":["/a:/w/x","/b:/w"]"#, "mount_spec[1]", "another mount has `/w/x`"),
        (r#""mount_spec":["/a:/w","job:p:/w/in"]"#, "mount_spec[1]", "another mount has `/w`"),
        (r#""mount_spec":"/a:/etc/x""#, "mount_spec", "would cover /etc"),
        (r#""mount_spec":"job:j:/in""#, "mount_spec", "its own artifacts"),
        (&many, "mount_spec", "has 17 mounts"),
    ] {
        let rejection = refused(&with(member));
        assert_eq!(
            (rejection.status, rejection.code, rejection.field.as_deref()),
            (400, "invalid_mount", Some(field)),
            "{member}"
        );
        assert!(rejection.message.contains(says), "{}", rejection.message);
    }
}

#[test]
fn sizes_are_bounded() {
    let text = |bytes| "x".repeat(bytes);
    for (member, field) in [
        (format!(r#""command":["a","{}"]"#, text(MAX_ARGUMENT_BYTES + 1)), "command[1]"),
        (format!(r#""env":{{"A":"{}"}}"#, text(MAX_ARGUMENT_BYTES - 1)), "env.A"),
        (format!(r#""command":["a",{}]"#, vec![format!("\"{}\"", text(100_000)); 6].join(",")), "command"),
    ] {
        let rejection = refused(&with(&member));
        assert_eq!((rejection.code, rejection.field.as_deref()), ("too_large", Some(field)));
    }
    assert!(parse(with(&format!(r#""env":{{"A":"{}"}}"#, text(MAX_ARGUMENT_BYTES - 2))).as_bytes()).is_ok());
}

#[test]
fn hostile_text_is_shown_short_and_escaped() {
    let rejection = refused(&with(&format!(r#""job_id":"\n{}""#, "x".repeat(10_000))));
    assert!(rejection.message.len() < 400 && rejection.message.contains("`\\nxxx"), "{}", rejection.message);
}
