//! Octets as text, as the tables of attacks have them.

/// Abbreviations of requests, and of what may stand behind one.
pub(crate) const OF_REQUESTS: [(&str, &str); 4] = [
    ("{P}", "POST / HTTP/1.1\r\nHost: a\r\n"),
    ("{G}", "GET / HTTP/1.1\r\nHost: a\r\n"),
    ("{T}", "Transfer-Encoding: chunked\r\n"),
    ("{N}", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"),
];

/// Abbreviations of responses, and of what may stand behind one.
pub(crate) const OF_RESPONSES: [(&str, &str); 3] = [
    ("{R}", "HTTP/1.1 200 OK\r\n"),
    ("{T}", "Transfer-Encoding: chunked\r\n"),
    ("{N}", "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\npoisoned"),
];

/// What a text stands for: `\r`, `\n`, `\t`, `\0`, `\\` and `\xNN` are octets, `{x*9}` is nine
/// times x, and abbreviations are written out. `place` says where the text is, if it is wrong.
pub(crate) fn octets(place: &str, text: &str, abbreviations: &[(&str, &str)]) -> Vec<u8> {
    let written_out = |text: String, (short, long): &(&str, &str)| text.replace(short, long);
    let text = abbreviations.iter().fold(repeated(text), written_out);
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let [first, behind @ ..] = rest {
        let (octet, left) = match (first, behind) {
            (b'\\', [b'r', left @ ..]) => (b'\r', left),
            (b'\\', [b'n', left @ ..]) => (b'\n', left),
            (b'\\', [b't', left @ ..]) => (b'\t', left),
            (b'\\', [b'0', left @ ..]) => (0, left),
            (b'\\', [b'\\', left @ ..]) => (b'\\', left),
            (b'\\', [b'x', high, low, left @ ..]) => {
                let digits = [*high, *low].map(|digit| char::from(digit).to_digit(16));
                let [Some(high), Some(low)] = digits else { panic!("{place}: \\x without digits") };
                (u8::try_from(high * 16 + low).expect("two digits"), left)
            }
            (b'\\', _) => panic!("{place}: unknown escape"),
            (octet, left) => (*octet, left),
        };
        out.push(octet);
        rest = left;
    }
    out
}

/// Writes out what is to be repeated. Braces that say nothing of it stay as they are.
fn repeated(text: &str) -> String {
    let Some((before, behind)) = text.split_once('{') else { return text.to_owned() };
    let repetition = behind.split_once('}').and_then(|(inside, rest)| {
        let (piece, times) = inside.rsplit_once('*')?;
        Some((piece.repeat(times.parse().ok()?), rest))
    });
    match repetition {
        Some((piece, rest)) => format!("{before}{piece}{}", repeated(rest)),
        None => format!("{before}{{{}", repeated(behind)),
    }
}
