//! Target `head`: octets as a client sends them. The input is nothing but those octets.

use std::{ops::Range, time::Duration};

use stepflow_load_balancer::{
    exchange::{Announced, Answer, ErrorContext, ErrorFormat, Failure, admit, error_format},
    http1::{
        DateLine, FIELDS_MAX, HeadError, HeadScan, LeadingLine, Method, RequestHead, ScanError,
        Target as RequestTarget, Version, field_storage, parse_request,
    },
};

use super::{Verdict, naive};

type Found = Result<Option<Range<usize>>, ScanError>;

/// Properties: the end of a head does not depend on how it arrives; our parser, httparse and the
/// naive reader agree about it and about every part; every refusal has an answer.
pub fn run(octets: &[u8]) -> Verdict {
    let found = scan(LeadingLine::Skip, octets);
    let found_strictly = scan(LeadingLine::Refuse, octets);
    match (&found, &found_strictly) {
        (Ok(Some(skipping)), Ok(Some(strict))) => assert_eq!(skipping, strict),
        (Ok(Some(skipping)), Err(ScanError::EmptyLine)) => assert_eq!(skipping.start, 2),
        (_, Err(ScanError::EmptyLine)) => {}
        (skipping, strict) => assert_eq!(skipping, strict),
    }
    match found {
        Ok(Some(found)) => {
            assert!(octets[found.clone()].ends_with(b"\r\n\r\n"));
            read(&octets[found])
        }
        Ok(None) => {
            let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
            let other = httparse::Request::new(&mut room).parse(octets);
            assert!(!matches!(other, Ok(httparse::Status::Complete(_))), "httparse ends earlier");
            Verdict::Refused
        }
        Err(error) => refused(error.into(), ErrorFormat::Text),
    }
}

/// Looks for the end of a head: at once, octet by octet, and in two parts cut everywhere that can
/// make a difference.
pub fn scan(leading: LeadingLine, octets: &[u8]) -> Found {
    let mut scan = HeadScan::new(leading);
    let whole = scan.advance(octets);
    if let Ok(Some(found)) = &whole {
        let line = octets[found.clone()].windows(2).position(|two| two == b"\r\n");
        assert_eq!(Some(scan.start_line_bytes()), line, "the length of the start line");
    }
    let mut bytewise = HeadScan::new(leading);
    let settled = (0..=octets.len()).map(|n| bytewise.advance(&octets[..n]));
    let settled = settled.into_iter().find(|found| *found != Ok(None)).unwrap_or(Ok(None));
    assert_eq!(settled, whole, "octet by octet");
    let is_edge =
        |at: &usize| *at == 1 || octets[..*at].last().is_some_and(|b| matches!(b, b'\r' | b'\n'));
    for cut in (1..octets.len()).filter(is_edge).take(16) {
        let mut scan = HeadScan::new(leading);
        let found = match scan.advance(&octets[..cut]) {
            Ok(None) => scan.advance(octets),
            settled => settled,
        };
        assert_eq!(found, whole, "cut at {cut}");
    }
    whole
}

fn read(octets: &[u8]) -> Verdict {
    let mut storage = field_storage();
    let head = match parse_request(octets, &mut storage, FIELDS_MAX) {
        Ok(head) => head,
        Err(error) => return refused(error.into(), ErrorFormat::Text),
    };
    agrees_with_others(octets, &head);
    target_is_sound(&head);
    let fields = head.fields.len();
    if fields > 0 {
        let error = parse_request(octets, &mut field_storage(), fields - 1).err();
        assert_eq!(error, Some(HeadError::TooManyFields));
        assert!(parse_request(octets, &mut field_storage(), fields).is_ok());
    }
    match admit(&head) {
        Ok(admission) => {
            for said in [admission.authority, admission.instance].into_iter().flatten() {
                assert!(!said.iter().any(|b| matches!(b, b'\r' | b'\n' | 0)));
            }
            if let Some(authority) = admission.authority {
                let ends_a_host =
                    |b: &u8| b"/?#@\\, \t\"<>^`{|}".contains(b) || !b.is_ascii_graphic();
                assert!(!authority.iter().any(ends_a_host), "{}", authority.escape_ascii());
            }
            Verdict::Accepted
        }
        Err(failure) => refused(failure, error_format(&head)),
    }
}

fn agrees_with_others(octets: &[u8], head: &RequestHead<'_>) {
    let shown = octets.escape_ascii();
    let mut room = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let end = httparse::Request::new(&mut room).parse(octets);
    assert_eq!(end, Ok(httparse::Status::Complete(octets.len())), "{shown}");

    let naive = naive::head(octets).unwrap_or_else(|| panic!("only we read {shown}"));
    let fields: naive::Lines =
        head.fields.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect();
    assert_eq!(fields, naive.fields, "{shown}");
    let parts: Vec<&[u8]> = naive.start_line.split(|b| *b == b' ').collect();
    let [method, target, version] = parts[..] else { panic!("only we read {shown}") };
    assert!(naive::is_token(method), "{shown}");
    assert_eq!(head.method_token, method);
    let said = match head.version {
        Version::Http10 => &b"HTTP/1.0"[..],
        Version::Http11 => b"HTTP/1.1",
    };
    assert_eq!(version, said, "{shown}");
    match head.target {
        RequestTarget::Origin(whole) | RequestTarget::Authority(whole) => assert_eq!(whole, target),
        RequestTarget::Asterisk => assert_eq!((target, method), (&b"*"[..], &b"OPTIONS"[..])),
        RequestTarget::Absolute { authority, path } => {
            let rest = target.splitn(2, |b| *b == b':').nth(1).unwrap_or_default();
            let rest = rest.strip_prefix(b"//").unwrap_or_else(|| panic!("{shown}"));
            let rest = rest.strip_prefix(authority).unwrap_or_else(|| panic!("{shown}"));
            let is_implied = rest.is_empty() && matches!(path, b"/" | b"*");
            assert!(rest == path || is_implied, "{shown}");
        }
    }
}

/// What a backend gets as target is one word that begins as a target must.
fn target_is_sound(head: &RequestHead<'_>) {
    let target = head.target.forwarded();
    let is_word = target.iter().all(|b| *b > b' ' && *b != 0x7f && *b != b'#');
    assert!(is_word || head.method == Method::Connect, "{}", target.escape_ascii());
    assert!(!target.is_empty() && target.starts_with(head.target.path()));
    let begins_well = target[0] == b'/' || target == b"*" || head.method == Method::Connect;
    assert!(begins_well, "{}", target.escape_ascii());
}

/// A refusal blames the client, has a status, and its answer reads back.
fn refused(failure: Failure, format: ErrorFormat) -> Verdict {
    let status = failure.status().expect("a request that is refused is answered");
    assert!((400..500).contains(&status) || matches!(status, 501 | 505 | 508), "{failure:?}");
    let (body, content_type) = failure.body(format, &ErrorContext::default());
    let mut out = Vec::new();
    let answer = Answer { status, content_type: Some(content_type), body: &body };
    let date = DateLine::at(Duration::from_secs(784_111_777));
    answer.write(&mut out, Method::Post, &date, Announced::Close);
    let end = scan(LeadingLine::Refuse, &out).ok().flatten().expect("a head").end;
    let head = naive::head(&out[..end]).expect("a head");
    let length: usize = String::from_utf8_lossy(
        super::rules::values(&head.fields, "content-length").next().expect("a length"),
    )
    .parse()
    .expect("a number");
    assert_eq!(out.len() - end, length);
    Verdict::Refused
}
