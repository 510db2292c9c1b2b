//! Pure: request methods (RFC 9110 §9).

/// A method as far as a proxy cares. Unknown ones keep their octets in the head and are `Other`
/// here, which also keeps metric labels bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[expect(missing_docs, reason = "the names are those of RFC 9110 §9.3 and RFC 5789")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
    Other,
}

impl Method {
    /// Every method, in the order of [`Method::index`].
    pub const ALL: [Self; 10] = [
        Self::Get,
        Self::Head,
        Self::Post,
        Self::Put,
        Self::Delete,
        Self::Connect,
        Self::Options,
        Self::Trace,
        Self::Patch,
        Self::Other,
    ];

    /// Methods are case-sensitive (RFC 9110 §9.1): `get` is `Other`.
    pub fn of(token: &[u8]) -> Self {
        match token {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"DELETE" => Self::Delete,
            b"CONNECT" => Self::Connect,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"PATCH" => Self::Patch,
            _ => Self::Other,
        }
    }

    /// Whether content in such a request means nothing in general (RFC 9110 §9.3), so that some
    /// servers overlook it and read it as the next request.
    pub fn content_may_be_overlooked(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Delete | Self::Options | Self::Trace)
    }

    /// Label for logs and metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
            Self::Options => "OPTIONS",
            Self::Trace => "TRACE",
            Self::Patch => "PATCH",
            Self::Other => "OTHER",
        }
    }

    /// Place in tables that have one entry per method.
    pub fn index(self) -> u8 {
        self as u8
    }

    /// May be sent twice with the effect of once (RFC 9110 §9.2.2). An unknown method is assumed
    /// not to be.
    pub fn is_idempotent(self) -> bool {
        match self {
            Self::Get | Self::Head | Self::Put | Self::Delete | Self::Options | Self::Trace => true,
            Self::Post | Self::Connect | Self::Patch | Self::Other => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_the_place_in_all_and_labels_read_back() {
        for (place, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(method.index()), place);
            assert_eq!(Method::of(method.label().as_bytes()), method);
        }
        assert_eq!(Method::of(b"get"), Method::Other);
    }
}
