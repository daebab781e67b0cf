//! The `Date` field (RFC 9110 §5.6.7).

use crate::ledger::time::{Civil, Time};

const WEEKDAYS: [&[u8; 3]; 7] = [b"Mon", b"Tue", b"Wed", b"Thu", b"Fri", b"Sat", b"Sun"];
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// `Sun, 06 Nov 1994 08:49:37 GMT`. Every response has one, so it is put together without the formatter.
pub(super) fn http_date(time: Time) -> [u8; 29] {
    let Civil { year, month, day, weekday, hour, minute, second } = time.civil();
    let mut text = *b"Xxx, 00 Xxx 0000 00:00:00 GMT";
    text[..3].copy_from_slice(WEEKDAYS[weekday as usize]);
    text[8..11].copy_from_slice(MONTHS[month as usize - 1]);
    let pairs = [(5, day), (12, year / 100 % 100), (14, year % 100), (17, hour), (20, minute), (23, second)];
    for (at, number) in pairs {
        text[at] += (number / 10) as u8;
        text[at + 1] += (number % 10) as u8;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_dates() {
        for (seconds, text) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (951_868_799, "Tue, 29 Feb 2000 23:59:59 GMT"),
            (1_795_421_387, "Mon, 23 Nov 2026 08:09:47 GMT"),
            (4_102_444_799, "Thu, 31 Dec 2099 23:59:59 GMT"),
        ] {
            assert_eq!(std::str::from_utf8(&http_date(Time(seconds * 1_000_000))), Ok(text));
        }
    }
}
