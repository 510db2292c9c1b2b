//! Properties that the parts of this module have together. A failing case is printed.

use proptest::prelude::*;

use super::*;

/// Pieces of heads: whatever they are put together to, two readers must agree about it.
const PIECES: &[&[u8]] = &[
    b"GET / HTTP/1.1",
    b"HTTP/1.1 200 OK",
    b"POST /x HTTP/1.0",
    b"\r\n",
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"\n\n",
    b"A: b\r\n",
    b"A: b",
    b"Host: h\r\n",
    b"A:\r\n",
    b" folded\r\n",
    b":",
    b" ",
    b"\t",
    b"\0",
    b"\x16\x03",
    b"\xff",
    b"x",
    b"HTTP/1.1",
];

fn octets() -> impl Strategy<Value = Vec<u8>> {
    let pieces = proptest::collection::vec(proptest::sample::select(PIECES), 0..10);
    prop_oneof![
        4 => pieces.prop_map(|pieces| pieces.concat()),
        // Mostly heads, with an octet or two changed.
        4 => (heads(), proptest::collection::vec((any::<u16>(), any::<u8>()), 0..3)).prop_map(
            |(mut head, changes)| {
                for (at, octet) in changes {
                    let at = usize::from(at) % head.len();
                    head[at] = octet;
                }
                head
            }
        ),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
    ]
}

fn heads() -> impl Strategy<Value = Vec<u8>> {
    (written_lines(), any::<bool>()).prop_map(|(lines, is_request)| {
        let mut out = Vec::new();
        match is_request {
            true => write(HeadWriter::request(&mut out, b"GET", b"/x?y"), &lines),
            false => write(HeadWriter::response(&mut out, 404, b"Not Found"), &lines),
        }
        out
    })
}

type Lines = Vec<(String, Vec<u8>)>;

fn written_lines() -> impl Strategy<Value = Lines> {
    let octet = prop_oneof![8 => 0x21_u8..0x7f, 2 => 0x80_u8..=0xff];
    // White space inside a value belongs to it, around it does not.
    let inner = prop_oneof![8 => 0x20_u8..0x7f, 2 => 0x80_u8..=0xff, 1 => Just(b'\t')];
    let value =
        proptest::option::of((octet.clone(), proptest::collection::vec(inner, 0..9), octet))
            .prop_map(|value| match value {
                Some((first, inner, last)) => [&[first][..], &inner, &[last]].concat(),
                None => Vec::new(),
            });
    proptest::collection::vec(("[!#$%&'*+.^_`|~0-9A-Za-z-]{1,9}", value), 0..6)
}

fn write(mut head: HeadWriter<'_>, lines: &Lines) {
    for (name, value) in lines {
        head.field(name.as_bytes(), value);
    }
    head.end();
}

fn owned(fields: &[FieldLine<'_>]) -> Lines {
    fields.iter().map(|line| (line.name.to_owned(), line.value.to_vec())).collect()
}

type Found = Result<Option<std::ops::Range<usize>>, ScanError>;

/// Scans octets that arrive up to each of `ends` in turn.
fn scan(leading: LeadingLine, octets: &[u8], ends: impl Iterator<Item = usize>) -> Found {
    let mut scan = HeadScan::new(leading);
    let mut arrivals = ends.chain([octets.len()]).map(|end| scan.advance(&octets[..end]));
    arrivals.find(|found| *found != Ok(None)).unwrap_or(Ok(None))
}

/// How far httparse reads on its own; `None` if it wants more.
fn end_of(octets: &[u8], is_request: bool) -> httparse::Result<usize> {
    let mut storage = [httparse::EMPTY_HEADER; 64];
    match is_request {
        true => httparse::Request::new(&mut storage).parse(octets),
        false => httparse::Response::new(&mut storage).parse(octets),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_scan_does_not_depend_on_how_the_octets_arrive(
        octets in octets(),
        cuts in proptest::collection::vec(any::<u16>(), 0..6),
        skips in any::<bool>(),
    ) {
        let leading = if skips { LeadingLine::Skip } else { LeadingLine::Refuse };
        let whole = scan(leading, &octets, std::iter::empty());
        let mut cuts: Vec<usize> =
            cuts.iter().map(|cut| usize::from(*cut) % (octets.len() + 1)).collect();
        cuts.sort_unstable();
        let shown = octets.escape_ascii().to_string();
        prop_assert_eq!(&scan(leading, &octets, cuts.into_iter()), &whole, "{}", shown);
        prop_assert_eq!(&scan(leading, &octets, 0..octets.len()), &whole, "bytewise {}", shown);
    }

    #[test]
    fn scan_and_parser_agree_about_the_end_of_a_head(octets in octets(), is_request: bool) {
        let leading = if is_request { LeadingLine::Skip } else { LeadingLine::Refuse };
        let shown = octets.escape_ascii().to_string();
        match scan(leading, &octets, std::iter::empty()) {
            // What the scan calls a head is one to the parser, or none at all.
            Ok(Some(found)) => match end_of(&octets[found.start..], is_request) {
                Ok(httparse::Status::Complete(n)) => prop_assert_eq!(n, found.len(), "{}", shown),
                Ok(httparse::Status::Partial) => prop_assert!(false, "wants more: {}", shown),
                Err(_) => {}
            },
            Ok(None) => {
                let ends = matches!(end_of(&octets, is_request), Ok(httparse::Status::Complete(_)));
                prop_assert!(!ends, "ends early: {}", shown);
            }
            Err(_) => {}
        }
    }

    #[test]
    fn what_is_written_is_what_is_read(
        lines in written_lines(),
        method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,9}",
        target in "/[!-\"$-~]{0,12}",
        status in 100_u16..=999,
        reason in "[!-~][ -~]{0,9}",
    ) {
        let mut request = Vec::new();
        write(HeadWriter::request(&mut request, method.as_bytes(), target.as_bytes()), &lines);
        prop_assert_eq!(
            scan(LeadingLine::Refuse, &request, std::iter::empty()), Ok(Some(0..request.len())));
        let mut storage = field_storage();
        let read = parse_request(&request, &mut storage, 8);
        if method == "CONNECT" {
            prop_assert_eq!(read.err(), Some(HeadError::Target));
        } else {
            let read = read.map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
            prop_assert_eq!(read.method_token, method.as_bytes());
            prop_assert_eq!(read.target, Target::Origin(target.as_bytes()));
            prop_assert_eq!((read.version, owned(read.fields)), (Version::Http11, lines.clone()));
        }

        let mut response = Vec::new();
        write(HeadWriter::response(&mut response, status, reason.as_bytes()), &lines);
        prop_assert_eq!(
            scan(LeadingLine::Refuse, &response, std::iter::empty()), Ok(Some(0..response.len())));
        let mut storage = field_storage();
        let read = parse_response(&response, &mut storage, 8)
            .map_err(|error| TestCaseError::fail(format!("{error:?}")))?;
        prop_assert_eq!((read.status, read.reason), (status, reason.as_bytes()));
        prop_assert_eq!((read.version, owned(read.fields)), (Version::Http11, lines));
    }
}

/// The work of finding the end of a head that arrives octet by octet is that of reading it once:
/// a scan that began anew each time would read half a terabyte here.
#[test]
fn a_head_that_drips_costs_no_more_than_one_that_rains() {
    let head = [&b"GET /"[..], &vec![b'a'; 1 << 20], b" HTTP/1.1\r\n\r\n"].concat();
    let found = scan(LeadingLine::Refuse, &head, 0..head.len());
    assert_eq!(found, Ok(Some(0..head.len())));
}
