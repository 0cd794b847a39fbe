//! `harmonylite schema status`: shows from the status whether nodes have the same tables.

use serde_json::{Value as Json, json};

use crate::status::report::{Node, Status};

/// Number of the JSON's layout.
const VERSION: u32 = 1;

/// Returns the output, and whether the tables are the same.
pub(crate) fn shown(status: &Status, cluster: bool, as_json: bool) -> (String, bool) {
    let others: &[Node] = match cluster {
        true => &status.others,
        false => &[],
    };
    let is_same = others.iter().all(|node| !differs(node, &status.this));
    let is_known = !cluster || status.others_unknown.is_none();
    let text = match as_json {
        true => format!("{}\n", json(status, others, is_same && is_known)),
        false => text(status, others, cluster),
    };
    (text, is_same && is_known)
}

/// A node that told nothing of its tables may have any, so it does not count as different.
fn differs(node: &Node, this: &Node) -> bool {
    node.schema.hash.is_some() && node.schema.hash != this.schema.hash
}

fn text(status: &Status, others: &[Node], cluster: bool) -> String {
    let mut lines = vec![format!("this node {}", described(&status.this))];
    for node in others {
        let verdict = match &node.schema.hash {
            None => "tells nothing of its tables",
            Some(_) if differs(node, &status.this) => "DIFFERENT tables",
            Some(_) => "the same tables",
        };
        lines.push(format!("{verdict}: node {}", described(node)));
    }
    if let (true, Some(why)) = (cluster, &status.others_unknown) {
        lines.push(format!("other nodes: not known: {}", why.escape_debug()));
    }
    lines.join("\n") + "\n"
}

fn described(node: &Node) -> String {
    let name = match node.name.is_empty() {
        true => String::new(),
        false => format!(" ({})", node.name.escape_debug()),
    };
    let hash = |hash: &Option<String>| {
        let hash = hash.as_deref().unwrap_or("none");
        hash.escape_debug().to_string()
    };
    let (now, previous) = (hash(&node.schema.hash), hash(&node.schema.previous));
    format!("{}{name}: {now}, before: {previous}", node.node)
}

fn json(status: &Status, others: &[Node], is_same: bool) -> Json {
    let node = |node: &Node| {
        json!({
            "node": node.node,
            "name": node.name,
            "hash": node.schema.hash,
            "previous": node.schema.previous,
            "seen_ms": node.seen_ms,
            "same": node.schema.hash.as_ref().map(|_| !differs(node, &status.this)),
        })
    };
    json!({
        "version": VERSION,
        "same": is_same,
        "this": node(&status.this),
        "others": others.iter().map(node).collect::<Vec<_>>(),
        "others_unknown": status.others_unknown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::report::SchemaHash;

    fn node(id: &str, hash: Option<&str>) -> Node {
        Node {
            node: id.into(),
            schema: SchemaHash {
                hash: hash.map(str::to_owned),
                previous: Some("old".into()),
            },
            ..Node::default()
        }
    }

    #[test]
    fn a_node_with_different_tables_is_named() {
        let mut status = Status {
            this: node("1", Some("aa")),
            others: vec![node("2", Some("aa")), node("3", None)],
            ..Status::default()
        };
        assert!(shown(&status, true, false).1);
        status.others.push(node("4", Some("bb")));
        let (text, is_same) = shown(&status, true, false);
        assert!(!is_same);
        assert_eq!(
            text,
            "this node 1: aa, before: old\nthe same tables: node 2: aa, before: old\n\
             tells nothing of its tables: node 3: none, before: old\n\
             DIFFERENT tables: node 4: bb, before: old\n"
        );
        assert!(shown(&status, false, false).1, "of this node alone");
        let (json, _) = shown(&status, true, true);
        let json: Json = serde_json::from_str(&json).unwrap();
        assert_eq!(
            (&json["same"], &json["others"][2]["same"]),
            (&json!(false), &json!(false))
        );
        assert_eq!(json["others"][1]["same"], Json::Null);
    }
}
