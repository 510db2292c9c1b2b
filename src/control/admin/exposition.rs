//! Pure: Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

/// What a family of series is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A page of metrics that is being written, family by family.
#[derive(Debug, Default)]
pub(super) struct Page {
    text: String,
}

/// A family whose samples are being written. All of them stand together, as the format demands.
#[derive(Debug)]
pub(super) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
}

/// Labels of one sample: name and value.
pub(super) type Labels<'a> = &'a [(&'static str, &'a dyn Display)];

impl Page {
    /// Begins a family. It may stay without samples: then it says that there is nothing to count.
    pub(super) fn family(&mut self, name: &'static str, help: &str, kind: Kind) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        push(&mut self.text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.text, name }
    }

    /// A family of one sample without labels.
    pub(super) fn single(&mut self, name: &'static str, help: &str, kind: Kind, value: u64) {
        self.family(name, help, kind).sample(&[], value);
    }

    /// The page.
    pub(super) fn into_text(self) -> String {
        self.text
    }
}

impl Family<'_> {
    /// One sample.
    pub(super) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.suffixed("", labels, value);
    }

    /// One sample of a series whose name is the family's with something behind it.
    pub(super) fn suffixed(&mut self, suffix: &str, labels: Labels<'_>, value: impl Display) {
        self.text.push_str(self.name);
        self.text.push_str(suffix);
        for (index, (label, content)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            push(self.text, format_args!("{label}=\""));
            push(&mut Escaped(self.text), format_args!("{content}"));
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        push(self.text, format_args!(" {value}\n"));
    }
}

/// Escapes what passes through for a label value: backslash, quote and line feed.
struct Escaped<'a>(&'a mut String);

impl Write for Escaped<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        for c in text.chars() {
            match c {
                '\\' => self.0.push_str(r"\\"),
                '"' => self.0.push_str("\\\""),
                '\n' => self.0.push_str(r"\n"),
                c => self.0.push(c),
            }
        }
        Ok(())
    }
}

/// Writing to a `String` cannot fail; a `Display` that reports an error leaves its text short.
fn push(out: &mut impl Write, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_stand_below_their_family_with_labels_escaped() {
        let mut page = Page::default();
        let mut family = page.family("a_total", "Help of a", Kind::Counter);
        family.sample(&[("x", &"p\\q\"r\ns"), ("y", &1)], 2);
        family.suffixed("_sum", &[], 0.5);
        page.single("b", "Help of b", Kind::Gauge, 3);
        let want = "# HELP a_total Help of a\n# TYPE a_total counter\n\
                    a_total{x=\"p\\\\q\\\"r\\ns\",y=\"1\"} 2\na_total_sum 0.5\n\
                    # HELP b Help of b\n# TYPE b gauge\nb 3\n";
        assert_eq!(page.into_text(), want);
    }
}
