//! Pure: a set of response statuses, as an operator writes it.

use std::fmt;

/// Statuses from 100 to 599, such as `200-299, 401`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct StatusSet([u64; WORDS]);

const LOWEST: u16 = 100;
const HIGHEST: u16 = 599;
const WORDS: usize = ((HIGHEST - LOWEST + 1) as usize).div_ceil(64);

/// What is wrong with an entry of a list of statuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatusSetError {
    /// It is neither a status nor two with `-` between.
    Form,
    /// A number that is no status.
    NotAStatus,
    /// The first status of a range is above its last.
    Reversed,
}

impl StatusSetError {
    /// What is wrong, for the end of an error line.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Form => "it is neither a status nor a range such as 200-299",
            Self::NotAStatus => "a status is a number from 100 to 599",
            Self::Reversed => "the range begins above its end",
        }
    }
}

impl StatusSet {
    /// What [`StatusSet::parse`] accepts, for error messages.
    pub const ACCEPTED: &'static str =
        "statuses and ranges of them with commas between, such as 200-299,401";

    /// Reads a list of statuses and ranges.
    ///
    /// # Errors
    /// Names the first entry that is neither.
    pub fn parse(text: &str) -> Result<Self, (String, StatusSetError)> {
        let mut set = Self::default();
        for entry in text.split(',').map(str::trim) {
            set.insert_entry(entry).map_err(|error| (entry.to_owned(), error))?;
        }
        Ok(set)
    }

    /// Adds a status or a range.
    ///
    /// # Errors
    /// When it is neither.
    pub(super) fn insert_entry(&mut self, entry: &str) -> Result<(), StatusSetError> {
        let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
        let (first, last) = (status(first.trim())?, status(last.trim())?);
        if first > last {
            return Err(StatusSetError::Reversed);
        }
        for status in first..=last {
            let bit = usize::from(status - LOWEST);
            self.0[bit / 64] |= 1 << (bit % 64);
        }
        Ok(())
    }

    /// Whether the status is one of them.
    pub fn contains(&self, status: u16) -> bool {
        let bit = usize::from(status.wrapping_sub(LOWEST));
        self.0.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }
}

fn status(text: &str) -> Result<u16, StatusSetError> {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number {
        return Err(StatusSetError::Form);
    }
    let status = text.parse().ok().filter(|status| (LOWEST..=HIGHEST).contains(status));
    status.ok_or(StatusSetError::NotAStatus)
}

impl fmt::Debug for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries((LOWEST..=HIGHEST).filter(|s| self.contains(*s))).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_holds_its_statuses_and_no_other() {
        let set = StatusSet::parse("200-204, 401,599").unwrap();
        let held: Vec<u16> = (0..=u16::MAX).filter(|s| set.contains(*s)).collect();
        assert_eq!(held, [200, 201, 202, 203, 204, 401, 599]);
        let all = StatusSet::parse("100-599").unwrap();
        assert_eq!((0..=u16::MAX).filter(|s| all.contains(*s)).count(), 500);
    }

    #[test]
    fn what_is_no_list_is_refused_with_its_entry() {
        let cases = [
            ("", "", StatusSetError::Form),
            ("200,", "", StatusSetError::Form),
            ("2xx", "2xx", StatusSetError::Form),
            ("200, -299", "-299", StatusSetError::Form),
            ("200-250-299", "200-250-299", StatusSetError::Form),
            ("+200", "+200", StatusSetError::Form),
            ("99", "99", StatusSetError::NotAStatus),
            ("200-600", "200-600", StatusSetError::NotAStatus),
            ("99999999999", "99999999999", StatusSetError::NotAStatus),
            ("299-200", "299-200", StatusSetError::Reversed),
        ];
        for (text, entry, error) in cases {
            assert_eq!(StatusSet::parse(text), Err((entry.to_owned(), error)), "{text:?}");
        }
    }
}
