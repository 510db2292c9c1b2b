//! What a reader makes of the message at the front of some octets, and what two readers may not
//! differ in.

use std::collections::BTreeMap;

/// What the octets are taken for. They are all that comes: the sender closes behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Request,
    /// The response to a request with this method.
    ResponseTo(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reading {
    /// A whole message.
    Whole(Message),
    /// A part of one: the connection ended too early.
    Unfinished,
    /// Not a message, and why.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) start: Start,
    /// Values in order, by their names in lower case.
    pub(crate) fields: BTreeMap<String, Vec<Vec<u8>>>,
    /// The body without its framing.
    pub(crate) content: Vec<u8>,
    /// Where the next message starts.
    pub(crate) end: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    /// The target is `None` in absolute form, which libraries take apart in their own ways.
    Request {
        method: String,
        target: Option<Vec<u8>>,
    },
    Status(u16),
}

impl Reading {
    pub(crate) fn refused(why: impl std::fmt::Debug) -> Self {
        Self::Refused(format!("{why:?}"))
    }

    pub(crate) fn message(&self) -> Option<&Message> {
        match self {
            Self::Whole(message) => Some(message),
            Self::Unfinished | Self::Refused(_) => None,
        }
    }
}

impl Message {
    pub(crate) fn status(&self) -> Option<u16> {
        match self.start {
            Start::Status(status) => Some(status),
            Start::Request { .. } => None,
        }
    }
}

/// Puts field lines into the form that readers are compared in. Names of transfer codings have no
/// case, and h11 hands them on in lower case.
pub(crate) fn by_name<'a>(
    lines: impl Iterator<Item = (&'a str, &'a [u8])>,
) -> BTreeMap<String, Vec<Vec<u8>>> {
    let mut fields: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for (name, value) in lines {
        let name = name.to_ascii_lowercase();
        let value = match name.as_str() {
            "transfer-encoding" => value.to_ascii_lowercase(),
            _ => value.to_vec(),
        };
        fields.entry(name).or_default().push(value);
    }
    fields
}

/// In what two readers of the same octets differ, if both read a whole message.
pub(crate) fn difference(ours: &Reading, theirs: &Reading) -> Option<String> {
    let (ours, theirs) = (ours.message()?, theirs.message()?);
    let differ = |what: &str, a: &dyn std::fmt::Debug, b: &dyn std::fmt::Debug| {
        Some(format!("{what}: we read {a:?}, they read {b:?}"))
    };
    if ours.end != theirs.end {
        return differ("start of the next message", &ours.end, &theirs.end);
    }
    if ours.content != theirs.content {
        let shown = |content: &[u8]| content.escape_ascii().to_string();
        return differ("content", &shown(&ours.content), &shown(&theirs.content));
    }
    if ours.start != theirs.start {
        return differ("start line", &ours.start, &theirs.start);
    }
    (ours.fields != theirs.fields).then(|| differ("fields", &ours.fields, &theirs.fields)).flatten()
}
