//! Pure: the two eras of the Model Context Protocol over HTTP, told apart by a header.
//!
//! Up to 2025-11-25 a server may give a session id and keep state under it; from 2026-07-28 on
//! there are no sessions, and `Mcp-Session-Id` means nothing.

/// The header that carries the session id of the first era.
pub const MCP_SESSION_ID: &str = "Mcp-Session-Id";

/// The header that tells the era.
pub(super) const MCP_PROTOCOL_VERSION: &str = "Mcp-Protocol-Version";

/// The headers that say what a request is about, so that nobody must read its body.
pub(super) const MCP_METHOD: &str = "Mcp-Method";
pub(super) const MCP_NAME: &str = "Mcp-Name";

/// The first version without sessions.
const STATELESS_SINCE: &[u8] = b"2026-07-28";

/// Whether requests belong to sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Era {
    /// They may: also where nobody says a version, or one that is no date.
    Sessions,
    /// They do not: any backend serves any request.
    Stateless,
}

impl Era {
    /// Reads the value of `MCP-Protocol-Version`. Versions are dates, so they compare as text.
    pub fn of(version: &[u8]) -> Self {
        let is_date = version.len() == STATELESS_SINCE.len()
            && version.iter().zip(STATELESS_SINCE).all(|(octet, like)| match like {
                b'-' => *octet == b'-',
                _ => octet.is_ascii_digit(),
            });
        match is_date && version >= STATELESS_SINCE {
            true => Self::Stateless,
            false => Self::Sessions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_since_july_2026_know_no_sessions() {
        for version in ["2026-07-28", "2026-07-29", "2026-11-25", "2027-01-01", "9999-99-99"] {
            assert_eq!(Era::of(version.as_bytes()), Era::Stateless, "{version}");
        }
        let others = ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-27", ""];
        let odd = ["2026-07", "2026-07-28x", "draft", "DRAFT-2026", "2026/07/28", "20260728--"];
        for version in others.into_iter().chain(odd) {
            assert_eq!(Era::of(version.as_bytes()), Era::Sessions, "{version}");
        }
    }
}
