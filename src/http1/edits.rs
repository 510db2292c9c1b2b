//! Pure: which field lines of a head go on with another value, or not at all.
//!
//! Lines are told apart by their place, because a name may occur several times. Where nothing is
//! edited, nothing is allocated.

/// What becomes of one field line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    /// It goes on as it is, even if `Connection` names it.
    Keep,
    /// It goes on with this value.
    Value(Vec<u8>),
    /// It ends here.
    Drop,
}

/// Everything that differs between a head that came and the one that goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edits {
    lines: Vec<(u8, Edit)>,
    added: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Edits {
    /// Nothing differs.
    pub const NONE: Self = Self { lines: Vec::new(), added: Vec::new() };

    /// Decides about the line at this place.
    pub fn line(&mut self, index: u8, edit: Edit) {
        self.lines.push((index, edit));
    }

    /// Adds a line at the end.
    pub fn add(&mut self, name: &[u8], value: Vec<u8>) {
        self.added.push((name.to_vec(), value));
    }

    /// What was decided about the line at this place.
    #[inline]
    pub fn of(&self, index: u8) -> Option<&Edit> {
        self.lines.iter().find(|(place, _)| *place == index).map(|(_, edit)| edit)
    }

    /// The lines to add.
    pub fn added(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.added.iter().map(|(name, value)| (name.as_slice(), value.as_slice()))
    }
}
