//! Pure: what an operator can say about sessions.

use std::{fmt, time::Duration};

use super::{CookieSpec, Key};

/// How a session is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request names an instance in a header.
    Instance,
    /// A backend gives its id in a header of its response, and it comes back in that header.
    Header,
    /// A backend sets a cookie.
    ApplicationCookie,
    /// The balancer sets a cookie.
    Cookie,
}

impl Kind {
    /// Every kind, the strongest first: it decides where a request tells several.
    pub const ALL: [Self; 4] =
        [Self::Instance, Self::Header, Self::ApplicationCookie, Self::Cookie];

    /// The word for it in the configuration.
    pub fn label(self) -> &'static str {
        match self {
            Self::Instance => "instance",
            Self::Header => "header",
            Self::ApplicationCookie => "application_cookie",
            Self::Cookie => "cookie",
        }
    }
}

/// What a request gets whose session is lost: the instance that has it is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// 503 with `Retry-After`.
    Unavailable,
    /// 404: the client must begin a new session.
    NotFound,
    /// Another backend.
    Rebalance,
}

impl Lost {
    /// The words of the configuration.
    pub const WORDS: [(&'static str, Self); 3] =
        [("503", Self::Unavailable), ("404", Self::NotFound), ("rebalance", Self::Rebalance)];
}

/// What a lost session gets, for each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostRules([Lost; Kind::ALL.len()]);

/// Why a text is no [`LostRules`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LostRulesError {
    /// Neither a kind nor `all`.
    Kind(Box<str>),
    /// None of the three.
    Word(Box<str>),
}

impl fmt::Display for LostRulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(text) => write!(f, "{text:?} is no kind of session"),
            Self::Word(text) => write!(f, "{text:?} is none of 503, 404 and rebalance"),
        }
    }
}

impl Default for LostRules {
    /// Stepflow tries a 503 again; a client of MCP begins anew at a 404; a browser cares for
    /// neither.
    fn default() -> Self {
        Self([Lost::Unavailable, Lost::NotFound, Lost::Rebalance, Lost::Rebalance])
    }
}

impl LostRules {
    /// Reads `auto`, one word for every kind, or `kind=word` with commas between.
    ///
    /// # Errors
    /// The first entry that has no meaning.
    pub fn parse(text: &str) -> Result<Self, LostRulesError> {
        let mut rules = Self::default();
        if text.eq_ignore_ascii_case("auto") {
            return Ok(rules);
        }
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let (kind, word) = match entry.split_once('=') {
                Some((kind, word)) => (Some(kind.trim()), word.trim()),
                None => (None, entry),
            };
            let found = Lost::WORDS.iter().find(|(known, _)| known.eq_ignore_ascii_case(word));
            let (_, lost) = found.ok_or_else(|| LostRulesError::Word(word.into()))?;
            match kind {
                None => rules.0 = [*lost; Kind::ALL.len()],
                Some(kind) => {
                    let is = |known: &Kind| known.label().eq_ignore_ascii_case(kind);
                    let place = Kind::ALL.iter().position(is);
                    let place = place.ok_or_else(|| LostRulesError::Kind(kind.into()))?;
                    rules.0[place] = *lost;
                }
            }
        }
        Ok(rules)
    }

    /// What a lost session of this kind gets.
    pub fn of(&self, kind: Kind) -> Lost {
        self.0[kind as usize]
    }
}

/// Everything that an operator has said about sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Header in which requests and responses name an instance.
    pub instance_header: Box<str>,
    /// Header in which backends give ids of sessions.
    pub header: Option<Box<str>>,
    /// The cookie that the balancer inserts.
    pub cookie: Option<CookieSpec>,
    /// The cookie in which backends give ids of sessions.
    pub application_cookie: Option<Box<str>>,
    /// Keys: the first seals, all open. Empty: one is drawn at the start.
    pub keys: Vec<Key>,
    /// What lost sessions get.
    pub lost: LostRules,
    /// How long an unused session counts as live.
    pub idle: Duration,
}

impl Settings {
    /// The header for instances, unless told otherwise.
    pub const INSTANCE_HEADER: &'static str = "Stepflow-Instance-Id";

    /// Some kind of session is sealed, so keys are needed.
    pub fn seals(&self) -> bool {
        self.header.is_some() || self.cookie.is_some() || self.application_cookie.is_some()
    }

    /// Instances are told in the header in which they always were.
    pub fn has_own_instance_header(&self) -> bool {
        !self.instance_header.eq_ignore_ascii_case(Self::INSTANCE_HEADER)
    }

    /// Nothing here differs from a request that names its instance, or none.
    pub fn is_plain(&self) -> bool {
        !self.seals()
            && !self.has_own_instance_header()
            && self.lost.of(Kind::Instance) == Lost::Unavailable
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_rules_are_one_word_or_one_for_each_kind() {
        let auto = LostRules::parse("auto").unwrap();
        let of = |rules: LostRules| Kind::ALL.map(|kind| rules.of(kind));
        let (unavailable, not_found, rebalance) =
            (Lost::Unavailable, Lost::NotFound, Lost::Rebalance);
        assert_eq!(of(auto), [unavailable, not_found, rebalance, rebalance]);
        assert_eq!(of(LostRules::parse("404").unwrap()), [not_found; 4]);
        let some = LostRules::parse("header=503, application_cookie = 404 ,").unwrap();
        assert_eq!(of(some), [unavailable, unavailable, not_found, rebalance]);
        let both = LostRules::parse("rebalance,instance=503").unwrap();
        assert_eq!(of(both), [unavailable, rebalance, rebalance, rebalance]);
        assert_eq!(LostRules::parse("500"), Err(LostRulesError::Word("500".into())));
        assert_eq!(LostRules::parse("mcp=404"), Err(LostRulesError::Kind("mcp".into())));
    }
}
