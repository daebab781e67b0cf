#![allow(clippy::unwrap_used)]

use super::*;

fn example() -> Event {
    Event {
        time: Time::parse("2026-11-23T08:09:47.123456Z").unwrap(),
        subject: Some(Subject { job_id: "job_9999_chaos_test".into(), attempt: 1 }),
        detail: Detail::D1Stable(D1Stable {
            line: "[D1_STABLE] step=4 \"é\"\u{1}".into(),
            stream: "stdout".into(),
            offset: 12,
            count: 1,
        }),
    }
}

#[test]
fn the_bytes_are_the_contracts() {
    let mut out = Vec::new();
    example().write(7, &Hash([0xAB; 32]), &mut out);
    let expected = format!(
        r#"{{"seq":7,"prev":"{}","time":"2026-11-23T08:09:47.123456Z","job_id":"job_9999_chaos_test","attempt":1,"state":"D1_STABLE","detail":{{"line":"[D1_STABLE] step=4 \"é\"\u0001","stream":"stdout","offset":12,"count":1}}}}"#,
        "ab".repeat(32)
    );
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn an_event_comes_back() {
    let mut out = Vec::new();
    example().write(7, &Hash([3; 32]), &mut out);
    assert_eq!(Stored::parse(&out), Ok(Stored { seq: 7, prev: Hash([3; 32]), event: example() }));
    assert_eq!(check_link(&out, 7, &Hash([3; 32])), Ok(()));
    assert!(check_link(&out, 8, &Hash([3; 32])).is_err());
    assert!(check_link(&out, 7, &Hash([4; 32])).is_err());
}

#[test]
fn node_events_have_no_job_and_job_events_have_one() {
    let prev = "0".repeat(64);
    let line = |middle: &str, state: &str, detail: &str| {
        format!(
            r#"{{"seq":1,"prev":"{prev}","time":"2026-11-23T08:09:47.123456Z"{middle},"state":"{state}","detail":{detail}}}"#
        )
    };
    let job = r#","job_id":"a","attempt":0"#;
    let down = r#"{"reason":"SIGTERM"}"#;
    assert!(Stored::parse(line("", "NODE_DOWN", down).as_bytes()).is_ok());
    for bad in [
        line(job, "NODE_DOWN", down),
        line("", "CRASH", r#"{"cause":"killed","exit_code":null,"usage":null,"stdout":null,"stderr":null}"#),
        line("", "NODE_AWAY", "{}"),
        line("", "NODE_DOWN", "{}"),
        line(r#","extra":1"#, "NODE_DOWN", down),
    ] {
        assert!(Stored::parse(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn state_names_go_both_ways() {
    for state in State::ALL {
        assert_eq!(State::parse(state.as_str()), Some(state));
        assert_eq!(State::ALL[state as usize], state);
    }
}
