//! Rules left out on purpose, each with a history that fails without it.

/// Makes the enum of all mistakes, and the list of them.
macro_rules! mistakes {
    ($($(#[$about:meta])* $name:ident,)*) => {
        /// A mistake that the model makes if told to.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mistake {
            $($(#[$about])* $name,)*
        }

        impl Mistake {
            pub const ALL: &[Mistake] = &[$(Mistake::$name),*];
        }
    };
}

mistakes! {
    /// A tombstone names no birth: it ends all lives that were born at its number before it.
    TombstoneOfNumber,
    /// Rows from before are told apart by the node that had them.
    BeforeByNode,
    /// Rows under given numbers are told apart by node and time.
    GivenByNode,
    /// A row that is deleted and inserted again under its number counts as updated.
    ReplacedIsUpdated,
    /// A row that a REPLACE may have evicted before the insert counts as updated.
    EvictionIgnored,
    /// A delete after which a row is there counts as an update.
    CutDeleteIgnored,
    /// A maybe in a former part of the log is forgotten.
    MaybeOfFormerPart,
    /// A birth is not above the dead lives of its number.
    BornBelow,
    /// The birth has no bits of the content.
    BirthWithoutContent,
    /// A DELETE ends the lives that wait behind the shown one.
    WaitingDeletedToo,
    /// A number is moved by an insert and a delete.
    MovedByInsertAndDelete,
    /// Children are moved by the node that moves their parent, if it wrote them.
    ChildrenByMover,
    /// A junction row is named by the number that it refers to.
    JunctionByNumber,
    /// That a child refers to another parent is guessed from its number.
    ReferenceGuessed,
    /// Tombstones of moved lives are dropped.
    MovedTombstoneDropped,
    /// A copy's rows from before and the rows without birth of a cluster are different ones.
    CopyBesideOriginal,
    /// A displaced life gives its number to the next one: no mistake, but more is moved about.
    DisplacedGivesWay,
}
