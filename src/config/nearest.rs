//! What somebody who mistyped a name probably meant.

/// The candidate that differs least from `name`, if it differs little enough to be a typing error:
/// by a third of the name's length at most.
pub(super) fn nearest<'a>(
    name: &str,
    candidates: impl Iterator<Item = &'a str>,
) -> Option<&'a str> {
    let differences_max = name.chars().count().div_ceil(3);
    candidates
        .map(|candidate| (differences(name, candidate), candidate))
        .filter(|(differences, _)| *differences <= differences_max)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: insertions, deletions and replacements that turn one text into the other.
fn differences(a: &str, b: &str) -> usize {
    // One row of the usual table; `row[j]` is the distance of the part of `a` seen so far from the
    // first `j` characters of `b`.
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.chars().enumerate() {
            let replaced = diagonal + usize::from(from != to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[row.len() - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_find_their_word_and_other_words_find_none() {
        let words = ["dns_servers", "dns_refresh_min", "workers", "io_driver"];
        let cases = [
            ("dns_server", Some("dns_servers")),
            ("dns-servers", Some("dns_servers")),
            ("wrokers", Some("workers")),
            ("iodriver", Some("io_driver")),
            ("color", None),
            ("", None),
        ];
        for (name, want) in cases {
            assert_eq!(nearest(name, words.into_iter()), want, "{name}");
        }
    }

    #[test]
    fn differences_are_counted_per_character() {
        for (a, b, want) in [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("ü", "u", 1)]
        {
            assert_eq!(differences(a, b), want, "{a} {b}");
            assert_eq!(differences(b, a), want, "{b} {a}");
        }
    }
}
