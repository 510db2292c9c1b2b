//! Pure: what the sessions of a request ask for, and what becomes of those in its response.
//!
//! Invariants
//! - A backend sees its own ids and cookies, and nothing of the balancer's.
//! - A client gets nothing that names a backend, unless sessions are told by instance.
//! - What is not part of a session goes on octet for octet.

use std::net::SocketAddr;

use super::{
    Affinity, CookieSpec, Era, Key, Keys, Kind, Lost, LostRules, Named, Nonce, OpenError, Purpose,
    Settings, cookie,
    era::{MCP_METHOD, MCP_NAME, MCP_PROTOCOL_VERSION, MCP_SESSION_ID},
};
use crate::http1::{Edit, Edits, FieldLine, Method};

/// Pairs of one name that are opened in a request. Browsers send one for each path that fits;
/// more are left out unread, because each costs an attempt with every key.
const PAIRS_OPENED_MAX: usize = 4;

/// Sessions as this process knows them.
#[derive(Debug)]
pub struct Rules {
    /// Only where it is not the usual one, which `exchange::admit` reads.
    instance_header: Option<Box<str>>,
    header: Option<Header>,
    cookie: Option<(CookieSpec, Purpose)>,
    application_cookie: Option<(Box<str>, Purpose)>,
    lost: LostRules,
    keys: Keys,
}

#[derive(Debug)]
struct Header {
    name: Box<str>,
    purpose: Purpose,
    /// It is MCP's, so its rules are known.
    is_mcp: bool,
}

/// What tells where a request must go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Nothing, and no session is to be expected of it.
    #[default]
    Anybody,
    /// Nothing, and it may begin a session.
    Begins,
    /// A session of this kind, which has an owner.
    Owner(Kind),
    /// A session of this kind that nobody has: it does not open, or contradicts another.
    Nobody(Kind),
}

/// Who has a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The instance, if it has a name.
    pub instance: Option<Box<str>>,
    /// Where it was, if that is known.
    pub address: Option<SocketAddr>,
}

/// A session as it came.
#[derive(Clone, Debug)]
struct Token {
    /// As the client has it.
    text: Vec<u8>,
    owner: Owner,
    /// As the backend has it.
    value: Vec<u8>,
    is_current: bool,
}

/// The sessions of one request.
#[derive(Debug, Default)]
pub struct Reading {
    /// How its head differs for the backend.
    pub edits: Edits,
    /// Where it must go.
    pub route: Route,
    instance: Option<Owner>,
    header: Option<Token>,
    application_cookie: Option<Token>,
    cookie: Option<Token>,
    is_stateless: bool,
    /// What MCP's own fields say that the request is about.
    pub mcp: Mcp,
}

/// What a request of MCP says about itself, since 2026-07-28: the octets of two fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mcp {
    /// `Mcp-Method`, such as `tools/call`.
    pub method: Option<Box<[u8]>>,
    /// `Mcp-Name`: of the tool, the prompt or the resource.
    pub name: Option<Box<[u8]>>,
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// It names an instance twice.
    InstanceRepeated,
    /// It has two session headers.
    SessionRepeated,
}

/// What tells one session from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity<'a> {
    kind: Kind,
    instance: Option<&'a str>,
    /// Only where there is no instance.
    address: Option<SocketAddr>,
    value: &'a [u8],
}

/// What a response does with sessions.
#[derive(Debug, Default)]
pub struct Answered {
    /// How its head differs for the client.
    pub edits: Edits,
    /// The session that its client has from here on, if that is news.
    pub begun: Option<(Kind, Vec<u8>)>,
    /// The session of the request has ended.
    pub ended: bool,
}

/// The backend gave an id that cannot be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong;

impl Rules {
    /// Rules as told, with these keys.
    pub fn new(settings: &Settings, keys: &[Key]) -> Self {
        let header = settings.header.as_ref().map(|name| Header {
            name: name.clone(),
            // Names of fields mean the same in any case (RFC 9110 §5.1); names of cookies do not.
            purpose: Purpose::new(1, name.to_ascii_lowercase().as_bytes()),
            is_mcp: name.eq_ignore_ascii_case(MCP_SESSION_ID),
        });
        let cookie = settings.cookie.as_ref();
        let application_cookie = settings.application_cookie.as_ref();
        let own_header = settings.has_own_instance_header();
        Self {
            instance_header: own_header.then(|| settings.instance_header.clone()),
            header,
            cookie: cookie.map(|spec| (spec.clone(), Purpose::new(2, spec.name().as_bytes()))),
            application_cookie: application_cookie
                .map(|name| (name.clone(), Purpose::new(3, name.as_bytes()))),
            lost: settings.lost,
            keys: Keys::new(keys),
        }
    }

    /// What a lost session of this kind gets.
    pub fn lost(&self, kind: Kind) -> Lost {
        self.lost.of(kind)
    }

    /// The requests of MCP are told apart from others.
    pub fn knows_mcp(&self) -> bool {
        self.header.as_ref().is_some_and(|header| header.is_mcp)
    }

    /// Whether a field names the instance that a request asks for or a response comes from.
    pub fn names_instance(&self, name: &str) -> bool {
        let known = self.instance_header.as_deref().unwrap_or(Settings::INSTANCE_HEADER);
        name.eq_ignore_ascii_case(known)
    }

    /// Whether instances are told in a header of the operator's choice.
    pub fn has_own_instance_header(&self) -> bool {
        self.instance_header.is_some()
    }

    /// Reads the sessions of a request. `instance` is what it says in the usual header.
    ///
    /// # Errors
    /// When it names two.
    pub fn read(
        &self,
        fields: &[FieldLine<'_>],
        method: Method,
        instance: Option<&[u8]>,
    ) -> Result<Reading, ReadError> {
        let (mut reading, mut own_instance) = (Reading::default(), None);
        let (mut tokens, mut eras) = (None, None);
        let mut refused = None;
        let mut room = Vec::new();
        for (index, line) in (0..=u8::MAX).zip(fields) {
            let name = line.name;
            let is = |known: &str| name.eq_ignore_ascii_case(known);
            if self.instance_header.as_deref().is_some_and(is) {
                if own_instance.replace(line.value).is_some() {
                    return Err(ReadError::InstanceRepeated);
                }
                reading.edits.line(index, Edit::Keep);
            } else if let Some(header) = &self.header
                && is(&header.name)
            {
                if tokens.replace((index, line.value)).is_some() {
                    return Err(ReadError::SessionRepeated);
                }
            } else if self.knows_mcp() && is(MCP_PROTOCOL_VERSION) {
                // Two that differ are left to the backend, which has sessions if either has.
                let era = Era::of(line.value);
                eras = eras.filter(|earlier| *earlier == Era::Sessions).or(Some(era));
            } else if self.knows_mcp() && is(MCP_METHOD) {
                reading.mcp.method.get_or_insert_with(|| line.value.into());
            } else if self.knows_mcp() && is(MCP_NAME) {
                reading.mcp.name.get_or_insert_with(|| line.value.into());
            }
        }
        let instance = if self.instance_header.is_some() { own_instance } else { instance };
        reading.is_stateless = eras == Some(Era::Stateless);
        if !reading.is_stateless {
            if let (Some(header), Some((index, text))) = (&self.header, tokens) {
                match self.open(&header.purpose, text, &mut room) {
                    Ok(token) => {
                        reading.edits.line(index, Edit::Value(token.value.clone()));
                        reading.header = Some(token);
                    }
                    Err(_) => {
                        reading.edits.line(index, Edit::Drop);
                        refused = Some(Kind::Header);
                    }
                }
            }
            if self.cookie.is_some() || self.application_cookie.is_some() {
                for (index, line) in (0..=u8::MAX).zip(fields) {
                    if line.name.eq_ignore_ascii_case("cookie") {
                        self.read_cookies(index, line.value, &mut reading, &mut refused);
                    }
                }
            }
        }
        reading.route = self.route(&mut reading, method, instance, refused);
        Ok(reading)
    }

    fn open(&self, purpose: &Purpose, text: &[u8], room: &mut Vec<u8>) -> Result<Token, OpenError> {
        let opened = self.keys.open(purpose, text, room)?;
        // What was sealed for the balancer alone is known by its envelope.
        let value = if opened.value.is_empty() { &opened.nonce } else { opened.value };
        Ok(Token {
            text: text.to_vec(),
            owner: Owner {
                instance: opened.named.instance.map(Into::into),
                address: Some(opened.named.address),
            },
            value: value.to_vec(),
            is_current: opened.is_current,
        })
    }

    /// Opens the cookies in a line. Those of the balancer stay here; those of the application go
    /// on as the application set them, and those that were never sealed as they are: they are from
    /// before, or from somebody else.
    fn read_cookies(
        &self,
        index: u8,
        line: &[u8],
        reading: &mut Reading,
        refused: &mut Option<Kind>,
    ) {
        let mut room = Vec::new();
        let mut changes = Vec::new();
        if let Some((name, purpose)) = &self.application_cookie {
            for (number, pair) in cookie::pairs(line, name.as_bytes()).enumerate() {
                let text = cookie::unquoted(&line[pair.value.clone()]);
                let opened = match number < PAIRS_OPENED_MAX {
                    true => self.open(purpose, text, &mut room),
                    false => Err(OpenError::Refused),
                };
                match opened {
                    Ok(token) => {
                        changes.push((pair, Some(token.value.clone())));
                        reading.application_cookie.get_or_insert(token);
                    }
                    Err(OpenError::NoEnvelope) => {}
                    Err(OpenError::Refused) => {
                        changes.push((pair, None));
                        refused.get_or_insert(Kind::ApplicationCookie);
                    }
                }
            }
        }
        if let Some((spec, purpose)) = &self.cookie {
            for (number, pair) in cookie::pairs(line, spec.name().as_bytes()).enumerate() {
                let text = cookie::unquoted(&line[pair.value.clone()]);
                if number < PAIRS_OPENED_MAX && reading.cookie.is_none() {
                    match self.open(purpose, text, &mut room) {
                        Ok(token) => reading.cookie = Some(token),
                        Err(_) => *refused = refused.or(Some(Kind::Cookie)),
                    }
                }
                changes.push((pair, None));
            }
            changes.sort_by_key(|(pair, _)| pair.all.start);
        }
        if changes.is_empty() {
            return;
        }
        let edit = cookie::rewrite(line, &changes).map_or(Edit::Drop, Edit::Value);
        reading.edits.line(index, edit);
    }

    fn route(
        &self,
        reading: &mut Reading,
        method: Method,
        instance: Option<&[u8]>,
        refused: Option<Kind>,
    ) -> Route {
        if let Some(octets) = instance {
            let Affinity::Instance(name) = Affinity::read(Some(octets)) else {
                return Route::Nobody(Kind::Instance);
            };
            let other = |token: &Token| token.owner.instance.as_deref() != Some(name);
            reading.instance = Some(Owner { instance: Some(name.into()), address: None });
            // The session of one instance must not be shown to another.
            if refused == Some(Kind::Header) || reading.header.as_ref().is_some_and(other) {
                return Route::Nobody(Kind::Header);
            }
            return Route::Owner(Kind::Instance);
        }
        if refused == Some(Kind::Header) {
            return Route::Nobody(Kind::Header);
        }
        for kind in [Kind::Header, Kind::ApplicationCookie, Kind::Cookie] {
            if reading.token(kind).is_some() {
                return Route::Owner(kind);
            }
        }
        // A cookie that does not open matters only where no other does.
        if let Some(kind) = refused {
            return Route::Nobody(kind);
        }
        let is_mcp = self.knows_mcp();
        let has_cookies = self.cookie.is_some() || self.application_cookie.is_some();
        match &self.header {
            _ if reading.is_stateless => Route::Anybody,
            _ if has_cookies => Route::Begins,
            // Sessions of MCP begin with a POST.
            Some(_) if !is_mcp || method == Method::Post => Route::Begins,
            Some(_) | None => Route::Anybody,
        }
    }

    /// Decides what the final response `from` a backend does with sessions: to a request of this
    /// method, with this status, and whether its session was lost and it went to another backend.
    /// Envelopes are sealed with nonces that are never used again.
    ///
    /// # Errors
    /// When the backend gave an id that cannot be sealed.
    pub fn answer(
        &self,
        reading: &Reading,
        (method, status, has_moved): (Method, u16, bool),
        fields: &[FieldLine<'_>],
        from: Named<'_>,
        mut nonce: impl FnMut() -> Nonce,
    ) -> Result<Answered, TooLong> {
        let mut answered = Answered::default();
        if reading.is_stateless {
            return Ok(answered);
        }
        let mut gave_header = false;
        for (index, line) in (0..=u8::MAX).zip(fields) {
            if let Some(header) = &self.header
                && line.name.eq_ignore_ascii_case(&header.name)
                && !line.value.is_empty()
            {
                gave_header = true;
                let known = reading.header.as_ref();
                let text = match known.filter(|token| token.is_of(from, line.value)) {
                    // The same session has the same id for as long as it lives.
                    Some(token) => token.text.clone(),
                    None => {
                        answered.begun = Some((Kind::Header, line.value.to_vec()));
                        let sealed = self.keys.seal(&header.purpose, from, line.value, &nonce());
                        sealed.ok_or(TooLong)?.into_bytes()
                    }
                };
                answered.edits.line(index, Edit::Value(text));
            } else if let Some((name, purpose)) = &self.application_cookie
                && line.name.eq_ignore_ascii_case("set-cookie")
                && let Some(place) = cookie::set_value(line.value, name.as_bytes())
            {
                if cookie::is_removal(line.value, &place) {
                    answered.ended |= reading.route == Route::Owner(Kind::ApplicationCookie);
                    continue;
                }
                let value = &line.value[place.clone()];
                let known = reading.application_cookie.as_ref();
                let fits = |token: &&Token| token.is_current && token.is_of(from, value);
                let text = match known.filter(fits) {
                    Some(token) => token.text.clone(),
                    None => {
                        let is_same = known.is_some_and(|token| token.is_of(from, value));
                        if !is_same && answered.begun.is_none() {
                            answered.begun = Some((Kind::ApplicationCookie, value.to_vec()));
                        }
                        let sealed = self.keys.seal(purpose, from, value, &nonce());
                        sealed.ok_or(TooLong)?.into_bytes()
                    }
                };
                let text = cookie::with_value(line.value, &place, &text);
                answered.edits.line(index, Edit::Value(text));
            }
        }
        if let Some(header) = self.header.as_ref().filter(|_| has_moved && !gave_header)
            && let Some(token) = &reading.header
        {
            // The session goes on elsewhere: its client should ask there at once next time.
            let sealed = self.keys.seal(&header.purpose, from, &token.value, &nonce());
            answered.edits.add(header.name.as_bytes(), sealed.ok_or(TooLong)?.into_bytes());
            answered.begun = Some((Kind::Header, token.value.clone()));
        }
        if let Some((spec, purpose)) = &self.cookie {
            let known = reading.cookie.as_ref().filter(|token| token.owner.is(from));
            if !known.is_some_and(|token| token.is_current) {
                let nonce = nonce();
                let sealed = self.keys.seal(purpose, from, b"", &nonce).ok_or(TooLong)?;
                answered.edits.add(b"Set-Cookie", spec.set(&sealed));
                let is_strongest =
                    !matches!(reading.route, Route::Owner(Kind::Header | Kind::ApplicationCookie));
                if answered.begun.is_none() && is_strongest {
                    answered.begun = Some((Kind::Cookie, nonce.to_vec()));
                }
            }
        }
        // MCP: 404 says that the server has no such session; DELETE ends one.
        answered.ended |= self.knows_mcp()
            && reading.route == Route::Owner(Kind::Header)
            && (status == 404 || (method == Method::Delete && (200..300).contains(&status)));
        Ok(answered)
    }
}

impl Token {
    fn is_of(&self, from: Named<'_>, value: &[u8]) -> bool {
        self.value == value && self.owner.is(from)
    }
}

impl Owner {
    /// Whether this is who answers: the same instance, or where nobody has a name the same address.
    pub fn is(&self, from: Named<'_>) -> bool {
        match (&self.instance, from.instance) {
            (Some(instance), Some(name)) => **instance == *name,
            (None, None) => self.address == Some(from.address),
            _ => false,
        }
    }
}

impl Reading {
    fn token(&self, kind: Kind) -> Option<&Token> {
        match kind {
            Kind::Instance => None,
            Kind::Header => self.header.as_ref(),
            Kind::ApplicationCookie => self.application_cookie.as_ref(),
            Kind::Cookie => self.cookie.as_ref(),
        }
    }

    /// Who must serve the request.
    pub fn owner(&self) -> Option<&Owner> {
        match self.route {
            Route::Owner(Kind::Instance) => self.instance.as_ref(),
            Route::Owner(kind) => self.token(kind).map(|token| &token.owner),
            Route::Anybody | Route::Begins | Route::Nobody(_) => None,
        }
    }

    /// The session that decides, where it can be counted.
    pub fn identity(&self) -> Option<Identity<'_>> {
        let Route::Owner(kind) = self.route else { return None };
        let token = self.token(kind)?;
        let instance = token.owner.instance.as_deref();
        let address = token.owner.address.filter(|_| instance.is_none());
        Some(Identity { kind, instance, address, value: &token.value })
    }
}

impl<'a> Identity<'a> {
    /// The identity of a session that `from` has just given.
    pub fn begun(kind: Kind, from: Named<'a>, value: &'a [u8]) -> Self {
        let address = from.instance.is_none().then_some(from.address);
        Self { kind, instance: from.instance, address, value }
    }
}
