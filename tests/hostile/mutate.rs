//! Deterministic mutations: the same round gives the same bytes.

/// xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators", 2016.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() >> 33) as usize % bound.max(1)
    }
}

/// Heads of CBOR items that promise much, bounds of integers, and pieces of TOML.
const WORDS: [&[u8]; 12] = [
    b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\x5b\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\x7a\xff\xff\xff\xff",
    b"\x1b\x40\0\0\0\0\0\0\0",
    b"\x3b\x7f\xff\xff\xff\xff\xff\xff\xff",
    b"\xf6",
    b"\xfb\x7f\xf8\0\0\0\0\0\0",
    b"\xd9\xa0\x28\x41\xff",
    b"\x28\xb5\x2f\xfd",
    b"[[",
    b"99999999999999999999",
    b"\"\\u0000\"",
];

/// One of the inputs with a few changes.
pub fn mutated(inputs: &[Vec<u8>], round: u64) -> Vec<u8> {
    let mut random = Random(round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    for _ in 0..4 {
        random.next();
    }
    let mut bytes = inputs[random.below(inputs.len())].clone();
    for _ in 0..1 + random.below(5) {
        let at = random.below(bytes.len() + 1);
        match random.below(7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            1 if at < bytes.len() => bytes[at] = random.next() as u8,
            2 => bytes.insert(at, random.next() as u8),
            3 => bytes.truncate(at),
            4 => drop(bytes.splice(at..at, WORDS[random.below(WORDS.len())].iter().copied())),
            5 => {
                let end = (at + random.below(20)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let other = &inputs[random.below(inputs.len())];
                let from = random.below(other.len());
                let to = (from + random.below(60)).min(other.len());
                bytes.splice(at..at, other[from..to].iter().copied());
            }
        }
    }
    bytes
}

fn array(count: usize) -> Vec<u8> {
    [&[0x9b][..], &(count as u64).to_be_bytes()].concat()
}

/// The index in [`large`] of the frame of upserts.
pub const UPSERTS: usize = 4;

/// Frames of the largest size that are all names, all versions, all rows, or nothing but depth.
pub fn large() -> Vec<Vec<u8>> {
    const SIZE: usize = 8 << 20;
    let start = [0x84, 1, 0];
    let filled = |head: Vec<u8>, with: &[u8]| {
        let times = (SIZE - head.len()) / with.len();
        [head, with.repeat(times)].concat()
    };
    let counted = |head: &[u8], with: &[u8]| {
        let times = (SIZE - head.len() - 9) / with.len();
        filled([head, &array(times)].concat(), with)
    };
    let table = b"\x84\x61t\x81\x83\x61k\x64TEXT\x66BINARY\x82\x61k\x61v";
    let nodes = [&start[..], &[0x81, 1]].concat();
    vec![
        vec![0; SIZE],
        vec![0x81; SIZE],
        counted(&start, &[5]),
        counted(
            &[&start[..], &[0x80]].concat(),
            &[&table[..], &[0x80]].concat(),
        ),
        counted(
            &[&nodes[..], &[0x81], &table[..]].concat(),
            b"\x85\0\x05\x01\x61x\xf6",
        ),
        counted(
            &[&nodes[..], &[0x81], &table[..]].concat(),
            b"\x85\0\0\x01\x61x\xf6",
        ),
        counted(
            &[&nodes[..], &[0x81], &table[..], b"\x81\x86\0\x05\x02"].concat(),
            b"\x01\0\x01",
        ),
    ]
}

/// Deeply nested input that must be refused, as TOML and as JSON, open and closed.
pub fn deep(entry: &str) -> Vec<String> {
    const DEPTH: usize = 100_000;
    let nest = |before: &str, open: &str, close: &str, depth: usize| {
        let open = open.repeat(depth);
        [
            format!("{before}{open}"),
            format!("{before}{open}1{}", close.repeat(depth)),
        ]
    };
    let all = match entry {
        "config" => {
            let dotted = "a.".repeat(DEPTH);
            // The deepest nesting that the parser allows: so many names in a key, so many keys in
            // each other.
            let deepest = format!("{}a={{", "a.".repeat(78));
            vec![
                nest("a=", "[", "]", DEPTH),
                nest("a=", "{a=", "}", DEPTH),
                nest("a=", "[{a=", "}]", DEPTH),
                nest("", &deepest, "}", 78),
                [format!("{dotted}a=1"), format!("[{dotted}a]")],
                [format!("[[{dotted}a]]"), format!("a={{{dotted}a=1}}")],
            ]
        }
        _ => {
            let known = r#"{"format":1,"cluster":"c","snapshots":[{"streams":{"s":"#;
            let unknown = r#"{"format":1,"cluster":"c","more":"#;
            ["", known, unknown]
                .iter()
                .flat_map(|before| {
                    [("[", "]"), ("{\"a\":", "}"), ("[{\"a\":", "}]")]
                        .map(|(open, close)| nest(before, open, close, DEPTH))
                })
                .collect()
        }
    };
    all.into_iter().flatten().collect()
}
