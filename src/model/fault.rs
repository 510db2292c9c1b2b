//! Pure: what counts as a failure of a backend, and what its operator wants counted.

use super::{StatusSet, status_set::StatusSetError};

/// How a backend failed a request that reached it, or could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// No connection, or none in time.
    Connect,
    /// The connection ended or broke before a whole response head, or what came is no HTTP.
    Reset,
    /// No response head in time.
    Timeout,
    /// It answered with this status.
    Status(u16),
}

/// The faults that are held against a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultSet {
    connect: bool,
    reset: bool,
    timeout: bool,
    statuses: StatusSet,
}

impl FaultSet {
    /// What [`FaultSet::parse`] accepts, for error messages.
    pub const ACCEPTED: &'static str =
        "connect, reset, timeout and statuses such as 500-502 with commas between";

    /// Reads a list of faults.
    ///
    /// # Errors
    /// Names the first entry that is none, and why.
    pub fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        let mut set = Self::default();
        for entry in text.split(',').map(str::trim) {
            let said = match entry.to_ascii_lowercase().as_str() {
                "connect" => &mut set.connect,
                "reset" => &mut set.reset,
                "timeout" => &mut set.timeout,
                _ => {
                    set.statuses.insert_entry(entry).map_err(|error| {
                        let reason = match error {
                            StatusSetError::Form => {
                                "it is neither connect, reset, timeout nor a status or range"
                            }
                            _ => error.reason(),
                        };
                        (entry.to_owned(), reason)
                    })?;
                    continue;
                }
            };
            *said = true;
        }
        Ok(set)
    }

    /// Whether this fault is held against a backend.
    #[inline]
    pub fn contains(&self, fault: Fault) -> bool {
        match fault {
            Fault::Connect => self.connect,
            Fault::Reset => self.reset,
            Fault::Timeout => self.timeout,
            Fault::Status(status) => self.statuses.contains(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_what_it_names_and_nothing_else() {
        let set = FaultSet::parse("Connect, timeout,500-502,504").unwrap();
        let held = [
            (Fault::Connect, true),
            (Fault::Reset, false),
            (Fault::Timeout, true),
            (Fault::Status(500), true),
            (Fault::Status(502), true),
            (Fault::Status(503), false),
            (Fault::Status(504), true),
            (Fault::Status(200), false),
        ];
        for (fault, want) in held {
            assert_eq!(set.contains(fault), want, "{fault:?}");
        }
    }

    #[test]
    fn what_is_no_fault_is_refused_with_its_entry() {
        for (text, entry) in [("connect,", ""), ("5xx", "5xx"), ("reset,700", "700"), ("", "")] {
            assert_eq!(FaultSet::parse(text).unwrap_err().0, entry, "{text:?}");
        }
    }
}
