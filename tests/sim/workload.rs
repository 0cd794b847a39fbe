//! The statements of the applications: small domains, so that everything collides with everything.

use harmonylite::database::schema::quote;
use harmonylite::model::value::OwnedValue;

use crate::plan::Table;
use crate::random::Random;

/// A statement and its parameters.
pub type Statement = (String, Vec<OwnedValue>);

fn text(t: &str) -> OwnedValue {
    OwnedValue::Text(t.as_bytes().to_vec())
}

pub fn value(table: &Table, column: usize, random: &mut Random) -> OwnedValue {
    let name = table.columns[column].name.as_str();
    let integer = |random: &mut Random| OwnedValue::Integer(random.between(1, 4));
    let word =
        |random: &mut Random| text(random.word(&["a", "A", "b", "B", "ab", "a ", "c", "e\u{301}"]));
    match name {
        "rowid" => OwnedValue::Integer(random.between(1, 6)),
        "id" if column == 0 => {
            let declared = &table.columns[column].declared;
            match declared.as_str() {
                d if d.starts_with("INTEGER") => {
                    let most = if table.is_numbered { 9 } else { 6 };
                    OwnedValue::Integer(random.between(1, most))
                }
                d if d.starts_with("TEXT") => word(random),
                _ => match random.below(6) {
                    0 => OwnedValue::Real(1.0),
                    1 => OwnedValue::Real(2.5),
                    2 => text("1"),
                    3 => OwnedValue::Blob(b"1".to_vec()),
                    _ => integer(random),
                },
            }
        }
        "id2" => text(random.word(&["a", "A", "b", "c"])),
        "p" if random.percent(10) => OwnedValue::Null,
        "p" if table.columns[column].declared.starts_with("TEXT") => word(random),
        "p" => integer(random),
        "l1" if random.percent(40) => text("d"),
        "l3" if random.percent(40) => OwnedValue::Integer(7),
        "l3" | "L2" => integer(random),
        "q" => word(random),
        _ if random.percent(8) => OwnedValue::Null,
        "s" | "l1" => match random.below(20) {
            0 => text(""),
            1 => OwnedValue::Blob(vec![0, 255]),
            2 => OwnedValue::Text(vec![b'a', 0xff]),
            3 => OwnedValue::Integer(1),
            4 => OwnedValue::Text(vec![b'z'; 300 + random.below(900)]),
            _ => word(random),
        },
        "n" => integer(random),
        "r" => OwnedValue::Real(*random.pick(&[0.5, -0.0, 0.0, 1.0, 1e300, f64::INFINITY])),
        "m" => match random.below(4) {
            0 => text("12"),
            1 => text("1e2"),
            2 => text("x"),
            _ => OwnedValue::Real(2.0),
        },
        _ => match random.below(6) {
            0 => OwnedValue::Real(1.0),
            1 => text("1"),
            2 => OwnedValue::Blob(b"1".to_vec()),
            3 => OwnedValue::Integer(i64::MAX),
            _ => integer(random),
        },
    }
}

/// One statement on a table that has these columns here, or two that belong together.
pub fn statements(table: &Table, columns: &[usize], random: &mut Random) -> Vec<Statement> {
    let name = quote(&table.name);
    let n = table.key.len();
    let key: Vec<OwnedValue> = (0..n).map(|c| value(table, c, random)).collect();
    let matches = |first: usize| {
        let each = (0..n).map(|c| format!("{} = ?{}", table.columns[c].name, first + c));
        each.collect::<Vec<_>>().join(" AND ")
    };
    let others: Vec<usize> = columns.iter().copied().filter(|c| *c >= n).collect();
    let delete = || {
        (
            format!("DELETE FROM {name} WHERE {}", matches(1)),
            key.clone(),
        )
    };
    match random.weighted(&[30, 20, 5, 8, 14, 4, 6]) {
        0 => {
            // SQLite chooses the number of a row without one.
            let is_chosen = table.is_numbered && random.percent(60);
            let key = if is_chosen {
                vec![OwnedValue::Null]
            } else {
                key
            };
            vec![insert(table, &key, &others, random)]
        }
        1 => {
            let verb = random.pick(&["UPDATE", "UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]);
            let mut values = key.clone();
            let mut set = Vec::new();
            for c in &others {
                if set.is_empty() || random.percent(30) {
                    let c = if set.is_empty() {
                        random.pick(&others)
                    } else {
                        c
                    };
                    values.push(value(table, *c, random));
                    set.push(format!("{} = ?{}", table.columns[*c].name, values.len()));
                }
            }
            vec![(
                format!("{verb} {name} SET {} WHERE {}", set.join(", "), matches(1)),
                values,
            )]
        }
        2 => {
            let set = random.pick(&["n = n % 3 + 1", "s = upper(s)", "n = n", "s = s || 'a'"]);
            let verb = random.pick(&["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]);
            vec![(format!("{verb} {name} SET {set}"), vec![])]
        }
        3 => {
            let mut values = key.clone();
            let mut set = Vec::new();
            for c in 0..n {
                values.push(value(table, c, random));
                set.push(format!("{} = ?{}", table.columns[c].name, values.len()));
            }
            let verb = random.pick(&["UPDATE", "UPDATE OR REPLACE", "UPDATE OR IGNORE"]);
            vec![(
                format!("{verb} {name} SET {} WHERE {}", set.join(", "), matches(1)),
                values,
            )]
        }
        4 => vec![delete()],
        5 => vec![(
            format!("DELETE FROM {name} WHERE n = ?1"),
            vec![OwnedValue::Integer(random.between(1, 4))],
        )],
        _ => vec![delete(), insert(table, &key, &others, random)],
    }
}

fn insert(table: &Table, key: &[OwnedValue], others: &[usize], random: &mut Random) -> Statement {
    let n = key.len();
    let mut columns: Vec<usize> = (0..n).collect();
    let mut values = key.to_vec();
    for c in others {
        if random.percent(80) {
            values.push(value(table, *c, random));
            columns.push(*c);
        }
    }
    let names: Vec<&str> = columns
        .iter()
        .map(|c| table.columns[*c].name.as_str())
        .collect();
    let places: Vec<String> = (1..=values.len()).map(|i| format!("?{i}")).collect();
    let verb = random.pick(&[
        "INSERT",
        "INSERT",
        "INSERT OR IGNORE",
        "REPLACE",
        "REPLACE",
        "INSERT OR ROLLBACK",
    ]);
    let mut text = format!(
        "{verb} INTO {}({}) VALUES ({})",
        quote(&table.name),
        names.join(", "),
        places.join(", ")
    );
    if *verb == "INSERT" && !table.is_rowid && random.percent(50) {
        let set: Vec<String> = names[n..]
            .iter()
            .map(|c| format!("{c} = excluded.{c}"))
            .collect();
        text += &match set.is_empty() || random.percent(20) {
            true => " ON CONFLICT DO NOTHING".to_owned(),
            false => format!(
                " ON CONFLICT ({}) DO UPDATE SET {}",
                names[..n].join(", "),
                set.join(", ")
            ),
        };
    }
    (text, values)
}
