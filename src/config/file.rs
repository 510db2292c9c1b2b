//! The configuration file: TOML with one flat key per option.
//!
//! Only reads what is written, as text with a line number; what a text means is the table's
//! business. An unknown key is an error, because a typing error that silently leaves a default in
//! force is found at the worst time.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use toml::de::{DeTable, DeValue};

use super::{
    error::{Place, Problem},
    nearest::nearest,
    options::{SETTINGS, Setting},
};

/// What a file says, with what is wrong about it.
#[derive(Debug, Default)]
pub struct File {
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

#[derive(Debug)]
struct Entry {
    setting: &'static Setting,
    text: String,
    place: Place,
}

impl File {
    /// Reads a file. One that cannot be read is one with a problem.
    pub fn read(path: &Path) -> Self {
        let text = fs::read(path).and_then(|octets| {
            String::from_utf8(octets)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()))
        });
        match text {
            Ok(text) => Self::parse(path, &text),
            Err(error) => {
                let problem = Problem::Unreadable { path: path.to_owned(), error };
                Self { entries: Vec::new(), problems: vec![problem] }
            }
        }
    }

    /// Reads the text of a file; `path` is for messages only.
    pub fn parse(path: &Path, text: &str) -> Self {
        let place = |offset: usize| {
            let line = text.as_bytes()[..offset.min(text.len())].iter().filter(|b| **b == b'\n');
            Place { path: PathBuf::from(path), line: line.count() + 1 }
        };
        let (table, errors) = DeTable::parse_recoverable(text);
        let mut file = Self::default();
        file.problems.extend(errors.iter().map(|error| Problem::Syntax {
            place: place(error.span().map_or(0, |span| span.start)),
            message: error.message().replace('\n', ", "),
        }));
        // What a broken file seems to say is not judged: one error would bring others in its train.
        if errors.is_empty() {
            file.take_entries(table.get_ref(), place);
        }
        file
    }

    fn take_entries(&mut self, table: &DeTable<'_>, place: impl Fn(usize) -> Place) {
        for (key, value) in table {
            let place = place(key.span().start);
            let key: &str = key.get_ref();
            let Some(setting) = Setting::by_key(key) else {
                let nearest = nearest(key, SETTINGS.iter().map(|setting| setting.key));
                self.problems.push(Problem::UnknownKey { key: key.to_owned(), place, nearest });
                continue;
            };
            match scalar(value.get_ref()) {
                Ok(text) => self.entries.push(Entry { setting, text, place }),
                Err(found) => self.problems.push(Problem::NotScalar { setting, place, found }),
            }
        }
        // The parser's table is sorted by key; people read from top to bottom.
        self.problems.sort_by_key(|problem| match problem {
            Problem::UnknownKey { place, .. } | Problem::NotScalar { place, .. } => place.line,
            _ => 0,
        });
    }

    /// The value of an option, if it has one that is not blank.
    pub(super) fn value(&self, setting: &Setting) -> Option<(&str, &Place)> {
        let entry = self.entries.iter().find(|entry| entry.setting == setting)?;
        let text = entry.text.trim();
        (!text.is_empty()).then_some((text, &entry.place))
    }

    /// What is wrong with the file itself.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    /// Whether the file could be understood at all.
    pub(super) fn is_legible(&self) -> bool {
        let illegible = |problem: &Problem| {
            matches!(problem, Problem::Syntax { .. } | Problem::Unreadable { .. })
        };
        !self.problems.iter().any(illegible)
    }

    /// Every key that the file sets, with the text of its value.
    pub fn values(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.entries.iter().map(|entry| (entry.setting.key, entry.text.as_str()))
    }
}

/// The text of a scalar, or what TOML calls the thing that is none.
fn scalar(value: &DeValue<'_>) -> Result<String, &'static str> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        // Hexadecimal and its like are shown as the number that they are.
        DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Ok(number.to_string()),
            Err(_) => Ok(number.as_str().to_owned()),
        },
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        DeValue::Boolean(claim) => Ok(claim.to_string()),
        DeValue::Datetime(_) => Err("date"),
        DeValue::Array(_) => Err("array"),
        DeValue::Table(_) => Err("table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> File {
        File::parse(Path::new("lb.toml"), text)
    }

    fn problems(text: &str) -> Vec<String> {
        parse(text).into_problems().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn scalars_of_every_kind_become_text() {
        let file = parse("workers = 0x1_0\nhealth_check_interval = 1.5\nlog_level = 'warn'\n");
        assert!(file.is_legible());
        let mut values: Vec<_> = file.values().collect();
        values.sort_unstable();
        let want = [("health_check_interval", "1.5"), ("log_level", "warn"), ("workers", "16")];
        assert_eq!(values, want);
    }

    #[test]
    fn unknown_keys_are_refused_where_they_stand() {
        let want = [
            "unknown key wrokers (file lb.toml:2); did you mean workers?",
            "unknown key colour (file lb.toml:4)",
            "unknown key tls (file lb.toml:5)",
        ];
        assert_eq!(problems("\nwrokers = 1\n\ncolour = 'red'\n[tls]\nworkers = 1"), want);
    }

    #[test]
    fn an_unknown_key_with_a_line_end_is_told_in_one_line() {
        assert_eq!(problems("\"a\\nb\" = 1"), ["unknown key a\\nb (file lb.toml:1)"]);
    }

    #[test]
    fn what_is_no_scalar_is_refused_with_what_it_is() {
        let want = "invalid value for dns_servers (file lb.toml:1): it is a TOML array; expected a \
                    string or a number: IP addresses, each with a port unless it is 53, with \
                    commas between";
        assert_eq!(problems("dns_servers = ['10.0.0.1']"), [want]);
        assert_eq!(problems("[workers]\n").len(), 1);
    }

    #[test]
    fn a_file_that_is_not_toml_is_refused_with_every_line_that_is_wrong() {
        for text in ["workers = \nlog_level = 'x\n", "a b\nc d\n", "workers = 1\nworkers = 2\n"] {
            let file = parse(text);
            assert!(!file.is_legible(), "{text:?}");
            assert_eq!(file.values().count(), 0);
            for problem in file.into_problems() {
                let line = problem.to_string();
                assert!(line.starts_with("file lb.toml:"), "{line}");
                assert!(!line.contains('\n'), "{line}");
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let file = File::read(Path::new("/nonexistent/lb.toml"));
        assert!(!file.is_legible());
        let text = file.into_problems()[0].to_string();
        assert!(text.contains("/nonexistent/lb.toml") && text.contains("--config"), "{text}");
    }
}
