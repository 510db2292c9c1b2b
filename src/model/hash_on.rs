//! Pure: which part of a request is its key, where requests are hashed.

use std::fmt;

/// What a request is hashed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashOn {
    /// The address of the client: as a trusted proxy tells it, else as we see it.
    ClientAddress,
    /// The value of a field, by its name in lower case.
    Header(String),
    /// The value of a cookie, by its name.
    Cookie(String),
    /// The value of a parameter of the query, by its name as it is sent.
    Query(String),
    /// The path, without the query.
    Path,
}

/// Why a text names no part of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashOnError {
    /// Not one of the words.
    Word,
    /// A word that takes a name, without one.
    NameMissing,
    /// A name that no field, cookie or parameter can have.
    NameInvalid,
}

impl HashOn {
    /// What [`HashOn::parse`] accepts, for error messages.
    pub const ACCEPTED: &'static str =
        "client_address, header:NAME, cookie:NAME, query:NAME or path";

    /// Reads a word, and the name behind it where there is one.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, HashOnError> {
        let Some((word, name)) = text.split_once(':') else {
            return match text.to_ascii_lowercase().as_str() {
                "client_address" => Ok(Self::ClientAddress),
                "path" => Ok(Self::Path),
                "header" | "cookie" | "query" => Err(HashOnError::NameMissing),
                _ => Err(HashOnError::Word),
            };
        };
        let name = name.trim();
        let checked = |is_part_of_name: fn(u8) -> bool| match name {
            "" => Err(HashOnError::NameMissing),
            name if name.bytes().all(is_part_of_name) => Ok(name.to_owned()),
            _ => Err(HashOnError::NameInvalid),
        };
        match word.trim_end().to_ascii_lowercase().as_str() {
            "header" => Ok(Self::Header(checked(is_token_octet)?.to_ascii_lowercase())),
            "cookie" => checked(is_token_octet).map(Self::Cookie),
            "query" => checked(is_query_name_octet).map(Self::Query),
            _ => Err(HashOnError::Word),
        }
    }
}

impl HashOnError {
    /// What is wrong, for the end of an error line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Word => "it is none of the words",
            Self::NameMissing => "the name is missing",
            Self::NameInvalid => "the name has a character that it cannot have",
        }
    }
}

impl fmt::Display for HashOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClientAddress => f.write_str("client_address"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Cookie(name) => write!(f, "cookie:{name}"),
            Self::Query(name) => write!(f, "query:{name}"),
            Self::Path => f.write_str("path"),
        }
    }
}

/// `tchar` (RFC 9110 §5.6.2); names of cookies are tokens too (RFC 6265 §4.1.1).
fn is_token_octet(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&octet)
}

/// What may stand in a query (RFC 3986 §3.4) and does not end a name there.
fn is_query_name_octet(octet: u8) -> bool {
    octet.is_ascii_graphic() && !b"&=#\"<>".contains(&octet)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_form_is_read_and_shown_as_written() {
        let cases = [
            ("client_address", HashOn::ClientAddress),
            ("path", HashOn::Path),
            ("header:x-session", HashOn::Header("x-session".to_owned())),
            ("cookie:SID", HashOn::Cookie("SID".to_owned())),
            ("query:user[id]", HashOn::Query("user[id]".to_owned())),
        ];
        for (text, want) in cases {
            assert_eq!(HashOn::parse(text).as_ref(), Ok(&want));
            assert_eq!(want.to_string(), text);
        }
        let header = HashOn::Header("x-session".to_owned());
        assert_eq!(HashOn::parse("Header: X-Session"), Ok(header));
    }

    #[test]
    fn what_names_no_part_of_a_request_says_what_is_wrong() {
        for (text, want) in [
            ("", HashOnError::Word),
            ("client", HashOnError::Word),
            ("path:x", HashOnError::Word),
            ("header", HashOnError::NameMissing),
            ("cookie:", HashOnError::NameMissing),
            ("query: ", HashOnError::NameMissing),
            ("header:a b", HashOnError::NameInvalid),
            ("cookie:a;b", HashOnError::NameInvalid),
            ("query:a=b", HashOnError::NameInvalid),
            ("header:ä", HashOnError::NameInvalid),
        ] {
            assert_eq!(HashOn::parse(text), Err(want), "{text}");
        }
    }
}
