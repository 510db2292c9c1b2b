//! What clients ask and what echoing servers answer, whoever they are.

use hyper::HeaderMap;

use crate::support::noise;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: &'static str,
    pub(crate) target: &'static str,
    pub(crate) body: Sent,
}

/// A request's body, and how it is sent.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Nothing,
    WithLength(Vec<u8>),
    InChunks(Vec<Vec<u8>>),
}

impl Sent {
    pub(crate) fn content(&self) -> Vec<u8> {
        match self {
            Self::Nothing => Vec::new(),
            Self::WithLength(content) => content.clone(),
            Self::InChunks(chunks) => chunks.concat(),
        }
    }
}

/// Everything that an answer echoes.
#[derive(Debug)]
pub(crate) struct Echo {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// Number of the connection on which the server got the request.
    pub(crate) connection: String,
}

/// Fields in which servers echo what they cannot put into the body.
pub(crate) const METHOD: &str = "x-method";
pub(crate) const TARGET: &str = "x-target";
pub(crate) const CONNECTION: &str = "x-connection";
/// How the request's body came.
pub(crate) const FRAMING: &str = "x-framing";

/// Value of [`FRAMING`] for a request with these fields.
pub(crate) fn framing_of(headers: &HeaderMap) -> String {
    let value = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let first = values.next().map(|value| value.to_str().expect("text").to_owned());
        assert!(values.next().is_none(), "{name} twice in {headers:?}");
        first
    };
    match (value("content-length"), value("transfer-encoding")) {
        (None, None) => "nothing".to_owned(),
        (Some(length), None) => format!("length {length}"),
        (None, Some(coding)) => coding,
        (Some(_), Some(_)) => panic!("two framings in {headers:?}"),
    }
}

/// One of each kind, small and large.
pub(crate) fn exchanges() -> Vec<Exchange> {
    let of = |method, target, body| Exchange { method, target, body };
    let chunks = |len: usize, size: usize| {
        Sent::InChunks(noise(len).chunks(size).map(<[u8]>::to_vec).collect())
    };
    vec![
        of("GET", "/", Sent::Nothing),
        of("GET", "/a/b?c=d&e=%20f", Sent::Nothing),
        of("POST", "/one", Sent::WithLength(vec![b'x'])),
        of("POST", "/chunks", chunks(1000, 300)),
        of("PUT", "/bytes", Sent::WithLength(noise(1000))),
        of("DELETE", "/nothing", Sent::Nothing),
        of("PATCH", "/more", Sent::WithLength(noise(100_000))),
        of("POST", "/many", chunks(300_000, 7001)),
        of("OPTIONS", "/odd", Sent::Nothing),
        of("POST", "/tiny", chunks(40, 1)),
        of("GET", "/last", Sent::Nothing),
    ]
}

impl Echo {
    pub(crate) fn new(status: u16, headers: HeaderMap, body: Vec<u8>) -> Self {
        let connection = headers.get(CONNECTION).map_or_else(String::new, |value| {
            value.to_str().expect("servers number their connections").to_owned()
        });
        Self { status, headers, body, connection }
    }

    fn field(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().expect("text"))
    }

    /// It is the answer to this request, and nothing was lost, added or framed anew on the way.
    #[track_caller]
    pub(crate) fn assert_answers(&self, exchange: &Exchange, context: &str) {
        let context = format!("{context}, {} {}", exchange.method, exchange.target);
        assert_eq!(self.status, 200, "{context}: {:?}", String::from_utf8_lossy(&self.body));
        assert_eq!(self.field(METHOD), exchange.method, "{context}");
        assert_eq!(self.field(TARGET), exchange.target, "{context}");
        let content = exchange.body.content();
        assert_eq!(self.body.len(), content.len(), "{context}");
        assert!(self.body == content, "{context}: other octets");
        let framing = match &exchange.body {
            Sent::Nothing => "nothing".to_owned(),
            Sent::WithLength(content) => format!("length {}", content.len()),
            Sent::InChunks(_) => "chunked".to_owned(),
        };
        assert_eq!(self.field(FRAMING), framing, "{context}");
        let answered = match &exchange.body {
            Sent::Nothing => "length 0".to_owned(),
            Sent::WithLength(_) | Sent::InChunks(_) => framing,
        };
        assert_eq!(framing_of(&self.headers), answered, "{context}: the answer's");
    }
}
