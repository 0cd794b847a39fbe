use proptest::prelude::*;

use super::*;
use crate::model::value::OwnedValue;

const COLUMNS: [&str; 3] = ["a", "b", "c"];

/// A row as a node holds it: its versions, and the values if it is live.
#[derive(Debug, Clone, PartialEq)]
struct Replica {
    state: Option<RowState>,
    values: [OwnedValue; 3],
}

#[derive(Debug, Clone)]
struct Change {
    state: RowState,
    values: [Option<OwnedValue>; 3],
}

const DEFAULT: OwnedValue = OwnedValue::Null;

impl Replica {
    fn new() -> Self {
        Replica {
            state: None,
            values: [DEFAULT; 3],
        }
    }

    fn apply(&mut self, change: &Change) {
        let live = self.state.as_ref().is_some_and(|s| !s.deleted);
        let columns: Vec<MergeColumn> = (0..3)
            .map(|i| MergeColumn {
                name: COLUMNS[i],
                local: live.then(|| self.values[i].borrow()),
                incoming: change.values[i].as_ref().map(OwnedValue::borrow),
            })
            .collect();
        let (state, action) = join(self.state.as_ref(), &change.state, &columns);
        let before = self.values.clone();
        let write = |values: &mut [OwnedValue; 3], write: &[usize]| {
            write
                .iter()
                .for_each(|&i| values[i] = change.values[i].clone().unwrap());
        };
        match action {
            Action::Nothing => assert_eq!(self.state.as_ref(), Some(&state)),
            Action::VersionOnly => {}
            Action::Delete => self.values = [DEFAULT; 3],
            Action::Write(w) => write(&mut self.values, &w),
            Action::Rebuild { write: w, keep } => {
                self.values = [DEFAULT; 3];
                keep.iter()
                    .for_each(|&i| self.values[i] = before[i].clone());
                write(&mut self.values, &w);
            }
        }
        self.state = Some(state);
    }
}

fn version() -> impl Strategy<Value = Version> {
    (1..6i64, 1..3u64).prop_map(|(hlc, node)| Version { hlc, node })
}

fn value() -> impl Strategy<Value = OwnedValue> {
    prop_oneof![
        Just(OwnedValue::Null),
        (0..3i64).prop_map(OwnedValue::Integer),
        Just(OwnedValue::Real(0.0)),
        Just(OwnedValue::Text(b"x".to_vec())),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let columns = prop::array::uniform3((
        prop::option::weighted(0.8, value()),
        version(),
        any::<bool>(),
    ));
    (
        version(),
        prop::bool::weighted(0.3),
        columns,
        prop::option::weighted(0.3, version()),
    )
        .prop_map(|(version, deleted, columns, floor)| {
            let mut exceptions = Exceptions::new();
            let mut values = [const { None }; 3];
            if !deleted {
                for (i, (value, own, excepted)) in columns.into_iter().enumerate() {
                    if excepted && own < version {
                        exceptions.insert(COLUMNS[i].to_owned(), own);
                    }
                    values[i] = value;
                }
                exceptions.extend(
                    floor
                        .filter(|f| *f < version)
                        .map(|f| (FLOOR.to_owned(), f)),
                );
            }
            Change {
                state: RowState {
                    version,
                    deleted,
                    exceptions,
                },
                values,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 4096,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_order_and_any_repetition_give_the_same_row(
        changes in prop::collection::vec(change(), 1..7),
        order in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let mut straight = Replica::new();
        changes.iter().for_each(|c| straight.apply(c));
        let mut shuffled = Replica::new();
        order.iter().for_each(|i| shuffled.apply(i.get(&changes)));
        changes.iter().rev().for_each(|c| shuffled.apply(c));
        prop_assert_eq!(straight, shuffled);
    }
}

#[test]
fn the_later_write_wins_and_a_delete_wins_a_tie() {
    let at = |hlc, deleted| RowState {
        version: Version { hlc, node: 1 },
        deleted,
        exceptions: Exceptions::new(),
    };
    let value = |i| MergeColumn {
        name: "a",
        local: Some(Value::Integer(1)),
        incoming: Some(Value::Integer(i)),
    };
    assert_eq!(
        join(Some(&at(5, false)), &at(6, false), &[value(2)]).1,
        Action::Write(vec![0])
    );
    assert_eq!(
        join(Some(&at(5, false)), &at(4, false), &[value(2)]).1,
        Action::Nothing
    );
    assert_eq!(
        join(Some(&at(5, false)), &at(5, false), &[value(0)]).1,
        Action::Nothing
    );
    assert_eq!(
        join(Some(&at(5, false)), &at(5, false), &[value(2)]).1,
        Action::Write(vec![0])
    );
    let none = MergeColumn {
        incoming: None,
        ..value(0)
    };
    assert_eq!(
        join(Some(&at(5, false)), &at(5, true), &[none]).1,
        Action::Delete
    );
    assert_eq!(
        join(Some(&at(5, false)), &at(4, true), &[none]).1,
        Action::VersionOnly
    );
}
