//! Thread: watches the database, captures what changed and publishes it.
//!
//! ```text
//! watcher ─hint─▶ ┌───────────┐ ─frames─▶ writer ─▶ broker
//! consumers ─wake▶│ publisher │ ◀──acks──
//! link ──writer──▶└───────────┘
//! ```
//! Capture never waits for the broker. Frames wait in the outbox; acknowledgements alone clear
//! their marks. When the connection breaks, the publisher forgets the frames under way, because the
//! marks still name all their rows. After the next connection, once the streams are read to their
//! end, the publisher encodes the marked rows as they are by then. Captured rows go out directly
//! again only after that.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Select, Sender, never};

use crate::capture::walk::PARTS;
use crate::clock::{Clock, SystemClock};
use crate::cluster::broker::Broker;
use crate::database::{DatabaseError, Lent};
use crate::logging::RepeatedFailure;
use crate::memory;
use crate::mirror::Mirror;
use crate::model::backoff::Backoff;
use crate::model::frame;
use crate::progress::{Unit, Work};
use crate::shared::{SURE_PAUSE, Shared};
use crate::stream::{Ack, Refusal, Writer, names_a_right};
use crate::thread::{Exited, spawn};
use crate::watcher::{self, Watcher};

mod connect;
mod link;

use connect::{ConnectRequest, Connector};
use link::{PublisherLink, Sending};

/// Waits before the polls that follow a hint without a change, while the commit may be under way:
/// the fsync of a slow card, or another process on the same core, can come between the write that
/// causes the hint and the moment at which the commit counts. The waits double, so that the delay
/// adds little to the time that the commit itself took. If nobody is writing, the last one alone
/// follows, after which the WAL is cut. Our own writes cause hints, too.
const POLL_AFTER: [Duration; 12] = [
    Duration::from_micros(100),
    Duration::from_micros(200),
    Duration::from_micros(400),
    Duration::from_micros(800),
    Duration::from_micros(1600),
    Duration::from_millis(3),
    Duration::from_millis(6),
    Duration::from_millis(12),
    Duration::from_millis(25),
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1600),
];

/// The WAL is cut after this long without a write.
const QUIET: Duration = Duration::from_secs(1);

/// While positions move, their mirror is written once in this many clean-ups.
const MIRRORED_EVERY: u32 = 12;

/// Memory is given back after this long without a write.
const RELEASED_AFTER: Duration = Duration::from_secs(30);

/// A WAL with fewer bytes than this is cut at most once in [`CUT_EVERY`]: each cut costs two syncs,
/// and writes pages that the application may soon write again.
const LARGE_WAL: u64 = 1 << 20;

/// Shortest time between two cuts of a small WAL.
const CUT_EVERY: Duration = Duration::from_secs(60);

/// A program that wants the database for itself tries for about this long.
const WANTS_IT: Duration = Duration::from_secs(10);

/// First pause before the database is lent again: a snapshot was being copied, so that it could not
/// be lent, or nobody took it although somebody waits. In the second case each pause is [`LATER`]
/// times the one before.
const LEND_AGAIN: Duration = Duration::from_millis(50);
const LATER: u32 = 4;

/// Names of these activities in [`crate::health`].
const CONNECTING: &str = "connecting";
/// The subject of health about settings that all nodes must share.
const SETTINGS: &str = "settings";
const PUBLISHING: &str = "publishing";
const OWN_TABLES: &str = "tables of HarmonyLite";
const ONE_STREAM: &str = "publishing, to one stream for all";

/// zstd's fastest level: frames are small and latency counts.
const COMPRESSION_LEVEL: i32 = 1;

/// Settings of the publisher.
pub struct PublisherOptions {
    /// Whether this node sends anything; false: it only captures.
    pub publish: bool,
    /// Whether frames are compressed with zstd.
    pub compress: bool,
    /// A transaction of up to this many bytes is never split when the backlog is encoded; a larger
    /// one is split at twice that.
    pub max_transaction_bytes: usize,
    /// Number of messages that a stream keeps. The publisher stops sending while half as many
    /// messages wait to be read by this node.
    pub max_entries: u64,
    /// How often marks and positions are stored when nothing else is written.
    pub cleanup_interval: Duration,
    /// Shortest time between two captures.
    pub publish_interval: Duration,
    /// How often to poll without a hint; set where hints cannot be relied on.
    pub polling_interval: Option<Duration>,
    /// Pauses between attempts to connect, and their number.
    pub pauses: ConnectPauses,
}

/// Pauses between attempts to connect. [`Broker::pause`] makes them longer while the broker is
/// away.
#[derive(Debug, Clone)]
pub struct ConnectPauses {
    /// After an attempt in vain.
    pub backoff: Backoff,
    /// After a connection on which the broker did not store what was sent.
    pub refused: Backoff,
    /// Number of attempts to connect that may fail in a row; `None`: no limit.
    pub retries: Option<u32>,
}

/// Channels of the thread.
pub struct PublisherInputs {
    /// Closed to end the thread.
    pub stop: Receiver<()>,
    /// The channel of [`Shared::new`].
    pub woken: Receiver<()>,
}

struct Publisher {
    shared: Arc<Shared>,
    options: PublisherOptions,
    inputs: PublisherInputs,
    watcher: Option<Watcher>,
    connector: Connector,
    link: Option<PublisherLink>,
    /// Why the broker refused the last frame; empty once it stores frames again.
    refusal: String,
    /// Why the last connection was given up; empty once something is stored.
    denial: String,
    /// Whether the log said that rows of the application stay here.
    said_kept: bool,
    /// Whether publishing fails, and since when.
    trouble: RepeatedFailure,
    /// Progress of comparing a table with its versions, which takes a while for a large table.
    comparing: Option<Work>,
    /// Names of the shards' streams.
    streams: Vec<String>,
    /// Made when it is needed.
    compressor: Option<zstd::bulk::Compressor<'static>>,
    mirror: Mirror,
    /// The mirror is not written before this time: a new file costs flash.
    mirror_at: Instant,
    /// The positions at the last clean-up.
    sequences: Vec<(String, u64)>,
    /// Deadline of the next poll of the database. `polls` counts those since the last hint: it is
    /// the index into [`POLL_AFTER`].
    poll_at: Option<Instant>,
    polls: usize,
    /// Capture rests until this time, so that the application gets the write lock.
    rest_until: Instant,
    tidy_at: Instant,
    /// When to lend the database to a program that wants it. `wanted_at` is when that program was
    /// noticed.
    lend_at: Option<Instant>,
    wanted_at: Instant,
    /// Pause between the end of one loan and the next.
    lend_pause: Duration,
    /// The application's next writes are captured at this time at the earliest.
    capture_at: Instant,
    /// When a write was last seen, ours or another program's.
    written_at: Instant,
    /// The `written_at` after which memory was given back.
    released_at: Option<Instant>,
    /// A small WAL is not cut before this time.
    cut_at: Instant,
}

/// Starts the publisher.
pub fn start(
    shared: Arc<Shared>,
    broker: Arc<dyn Broker>,
    options: PublisherOptions,
    inputs: PublisherInputs,
    watcher: Option<Watcher>,
    mirror: Mirror,
    exits: &Sender<Exited>,
) -> JoinHandle<()> {
    let streams = (1..=broker.shards())
        .map(|shard| broker.stream(shard))
        .collect();
    let connector = Connector::new(
        shared.clone(),
        broker,
        options.publish.then(|| options.pauses.clone()),
        inputs.stop.clone(),
        exits,
    );
    let now = Instant::now();
    let publisher = Publisher {
        shared,
        inputs,
        watcher,
        connector,
        link: None,
        refusal: String::new(),
        denial: String::new(),
        said_kept: false,
        trouble: RepeatedFailure::default(),
        comparing: None,
        streams,
        compressor: None,
        mirror,
        mirror_at: now,
        sequences: Vec::new(),
        poll_at: Some(now),
        polls: 0,
        rest_until: now,
        tidy_at: now + options.cleanup_interval,
        lend_at: None,
        wanted_at: now,
        lend_pause: LEND_AGAIN,
        capture_at: now,
        written_at: now,
        released_at: None,
        cut_at: now,
        options,
    };
    spawn("publisher", exits, move || publisher.run())
}

/// An event that wakes the publisher.
enum Event {
    Stop,
    Hint,
    Wake,
    Ack(Ack),
    Writer(Box<dyn Writer>),
    LinkLost,
    Timeout,
}

impl Publisher {
    fn run(mut self) -> Result<(), String> {
        self.connector.connect(ConnectRequest::default());
        let mut failing = false;
        loop {
            let event = self.next_event();
            if matches!(event, Event::Stop) {
                return self.finish();
            }
            let rests = self.rest_until > Instant::now();
            match self.handle(event) {
                Ok(()) if failing && !rests => {
                    failing = false;
                    self.shared.health.report_ok("database");
                }
                Ok(()) => {}
                Err(DatabaseError::Stopped) => return Ok(()),
                Err(DatabaseError::Dropped) => self.make_tables_again()?,
                Err(e) if e.is_temporary() => {
                    if !failing {
                        log::error!("database: {e}; trying again until it works");
                    }
                    failing = true;
                    self.shared
                        .health
                        .report_failing("database", &e.to_string());
                    self.rest_until = Instant::now() + Duration::from_secs(1);
                    self.poll_at = Some(self.rest_until);
                }
                Err(e) => return Err(format!("database: {e}")),
            }
        }
    }

    /// Makes the dropped tables again at once: until they exist, the application's writes fail.
    fn make_tables_again(&mut self) -> Result<(), String> {
        let made = self.shared.lock().database.make_tables_again();
        self.shared.forget_own();
        self.rest(Instant::now());
        match made {
            Ok(()) => {
                self.shared.health.report_ok(OWN_TABLES);
                self.shared.notify_scheduler();
                Ok(())
            }
            Err(DatabaseError::Stopped) => Ok(()),
            // The next poll finds the tables still missing, and tries again.
            Err(e) if e.is_temporary() => {
                let text = format!(
                    "another program dropped tables of HarmonyLite, and they cannot be created \
                     again: {e}; until then writes of the application fail"
                );
                self.shared.health.report_failing(OWN_TABLES, &text);
                log::error!("{text}; trying again");
                self.rest(Instant::now() + Duration::from_secs(1));
                Ok(())
            }
            Err(e) => Err(format!("database: {e}")),
        }
    }

    /// Waits for the next event. No other function of this thread waits, except at its end.
    fn next_event(&self) -> Event {
        let no_hints = never();
        let no_acks = never();
        let hints = self.watcher.as_ref().map_or(&no_hints, Watcher::hints);
        let acks = self
            .link
            .as_ref()
            .map_or(&no_acks, |link| link.writer.acks());
        let mut select = Select::new_biased();
        let stop = select.recv(&self.inputs.stop);
        let ack = select.recv(acks);
        let hint = select.recv(hints);
        let wake = select.recv(&self.inputs.woken);
        let writer = select.recv(self.connector.writers());
        let Ok(operation) = select.select_deadline(self.deadline()) else {
            return Event::Timeout;
        };
        match operation.index() {
            i if i == ack => operation.recv(acks).map_or(Event::LinkLost, Event::Ack),
            i if i == hint => operation
                .recv(hints)
                .map_or(Event::Timeout, |()| Event::Hint),
            i if i == wake => operation
                .recv(&self.inputs.woken)
                .map_or(Event::Stop, |()| Event::Wake),
            i if i == writer => operation
                .recv(self.connector.writers())
                .map_or(Event::Stop, Event::Writer),
            i => {
                debug_assert_eq!(i, stop);
                let _ = operation.recv(&self.inputs.stop);
                Event::Stop
            }
        }
    }

    fn deadline(&self) -> Instant {
        let lost = self.link.as_ref().and_then(PublisherLink::deadline);
        let poll = self.poll_at.map(|at| at.max(self.rest_until));
        [Some(self.tidy_at), poll, lost, self.lend_at]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.tidy_at)
    }

    /// Handles one event and all that is due by now.
    fn handle(&mut self, event: Event) -> Result<(), DatabaseError> {
        let now = Instant::now();
        match event {
            Event::Stop | Event::Timeout => {}
            Event::Hint => {
                if self.watcher.as_ref().is_some_and(Watcher::is_wanted) {
                    (self.lend_at, self.wanted_at) = (Some(now), now);
                    self.lend_pause = LEND_AGAIN;
                }
                self.shared.lock().database.check_files(false)?;
                (self.poll_at, self.polls, self.written_at) = (Some(now), 0, now);
            }
            Event::Wake => (self.poll_at, self.polls) = (Some(now), 0),
            Event::Ack(ack) => self.acknowledged(ack, now),
            Event::Writer(writer) => {
                self.connector.has_connected();
                match self.refusal.is_empty() {
                    true => log::info!("connected to NATS, publishing"),
                    false => log::debug!("connected to NATS, trying again"),
                }
                self.shared.health.report_ok(CONNECTING);
                self.shared.measures.publishes(true);
                self.shared.notify_scheduler();
                self.link = Some(PublisherLink::new(writer, now));
            }
            Event::LinkLost => self.drop_link("the connection is gone"),
        }
        let late = self.link.as_ref().and_then(PublisherLink::deadline);
        if late.is_some_and(|late| now > late) {
            self.drop_link("no acknowledgement in time");
        }
        if self.lend_at.is_some_and(|at| at <= now) {
            self.lend(now)?;
        }
        if self.rest_until <= now {
            self.fetch_backlog()?; // which captures, too
        }
        if self.poll_at.is_some_and(|at| at <= now) && self.rest_until <= now {
            self.poll(now)?;
        }
        if self.tidy_at <= now {
            self.tidy(now)?;
        }
        self.send()
    }

    /// Lends the database to a program that seems to want it for itself.
    fn lend(&mut self, now: Instant) -> Result<(), DatabaseError> {
        let stop = &self.inputs.stop;
        let is_over = |time| !matches!(stop.recv_timeout(time), Err(RecvTimeoutError::Timeout));
        let mut locked = self.shared.lock();
        let lent = locked.database.lend(is_over)?;
        let path = locked.database.path().to_owned();
        drop(locked);
        let waits = match lent {
            Lent::Taken => false,
            Lent::Untaken => watcher::is_waited_for(&path),
            Lent::NotNow => true,
        };
        let tries_on = waits && now < self.wanted_at + WANTS_IT;
        self.lend_at = tries_on.then(|| Instant::now() + self.lend_pause);
        if lent == Lent::Untaken {
            self.lend_pause *= LATER;
        }
        Ok(())
    }

    /// Captures if the application wrote.
    fn poll(&mut self, now: Instant) -> Result<(), DatabaseError> {
        let shared = self.shared.clone();
        let mut locked = shared.lock();
        let turn = match locked.database.is_comparing().then(|| shared.try_turn()) {
            Some(Err(at)) => {
                drop(locked);
                self.tell_progress(); // the one whose turn it is compares, too
                self.rest(at);
                return Ok(());
            }
            Some(Ok(turn)) => Some(turn),
            None => None,
        };
        let began = Instant::now();
        let is_settled = !locked.database.may_be_written();
        let changed = locked.database.is_changed()?;
        let captures =
            (changed || locked.database.has_more()) && locked.database.waits_for_capture()?;
        shared.measures.polled(began.elapsed());
        if locked.database.has_news() {
            shared.notify_scheduler(); // a capture is followed by another poll
        }
        let due = locked.database.next_check();
        let has_time = !locked.database.has_more() && locked.database.catalog_is_current()?;
        drop(locked);
        if captures && has_time && now < self.capture_at {
            (self.written_at, self.poll_at) = (now, Some(self.capture_at));
            return Ok(()); // nothing waits but the application's rows
        }
        if changed || captures {
            self.written_at = now;
        } else {
            self.cut_wal(now)?;
        }
        if captures {
            let (more, held) = self.capture()?;
            self.capture_at = now + self.options.publish_interval;
            self.tell_progress();
            // As in the consumers, the application gets the lock for half as long as we held it.
            let pause = match turn {
                Some(turn) => shared.rest(turn, held),
                None => (held / 2).min(SURE_PAUSE),
            };
            self.rest(Instant::now() + pause);
            if more {
                return Ok(());
            }
        }
        if is_settled {
            self.polls = self.polls.max(POLL_AFTER.len() - 1);
        }
        self.poll_at = POLL_AFTER
            .get(self.polls)
            .map(|wait| Instant::now() + *wait);
        self.polls += 1;
        let poll = self
            .options
            .polling_interval
            .map(|every| Instant::now() + every);
        let due = due.map(|wait| Instant::now() + wait);
        self.poll_at = [self.poll_at.or(poll), due].into_iter().flatten().min();
        Ok(())
    }

    /// Reports how far the comparison of a table is.
    fn tell_progress(&mut self) {
        // If pages are damaged, the comparison itself finds that and says so.
        let walk = self.shared.lock().database.walk();
        let Ok(Some(walk)) = walk else {
            self.comparing = None;
            return;
        };
        let work = &mut self.comparing;
        let work = work.get_or_insert_with(|| Work::begin("tables", Unit::Parts));
        let step = match walk.is_new {
            true => format!("taking in {}", walk.table),
            false => format!("comparing {}", walk.table),
        };
        work.at(&step, walk.done, PARTS);
    }

    /// Captures one transaction of the change log. Returns whether more is left, and how long the
    /// database was held.
    fn capture(&self) -> Result<(bool, Duration), DatabaseError> {
        let shared = &self.shared;
        let mut locked = shared.lock_to_write();
        let mut captured = locked.database.capture()?;
        locked.hand_over(&mut captured);
        if captured.changes > 0 {
            shared.note_written();
            shared.note_change();
        }
        let took = locked.began.elapsed();
        shared.measures.captured(took);
        Ok((captured.more, took))
    }

    /// Cuts the WAL if nobody writes and it is large or old enough. A cut that does not work now is
    /// tried again after the next [`Self::tidy`].
    fn cut_wal(&mut self, now: Instant) -> Result<(), DatabaseError> {
        if now < self.written_at + QUIET {
            return Ok(());
        }
        let mut locked = self.shared.lock();
        let bytes = locked.database.wal_bytes();
        if bytes >= LARGE_WAL || (bytes > 0 && now >= self.cut_at) {
            let is_cut = locked.database.cut_wal()?;
            log::debug!("cutting a WAL of {} KB: {is_cut}", bytes >> 10);
            self.cut_at = Instant::now() + CUT_EVERY;
        }
        Ok(())
    }

    fn rest(&mut self, until: Instant) {
        (self.rest_until, self.poll_at, self.polls) = (until, Some(until), 0);
    }

    /// Whether captures only mark rows, which are to be sent by way of the backlog now.
    fn has_backlog(&self) -> bool {
        let is_connected = self.link.is_some() && self.shared.all_at_end();
        is_connected && {
            let locked = self.shared.lock();
            !locked.database.is_live() && self.shared.may_publish(&locked.database)
        }
    }

    /// Encodes the next piece of the backlog, if nothing is under way and captures only mark rows.
    fn fetch_backlog(&mut self) -> Result<(), DatabaseError> {
        if !self.has_backlog() {
            return Ok(()); // we are woken when that changes
        }
        let shared = self.shared.clone();
        let locked = shared.lock();
        if !locked.outbox.is_empty() {
            return Ok(());
        }
        if !locked.database.is_captured() {
            self.poll_at = self.poll_at.or(Some(Instant::now()));
            return Ok(()); // it comes to an end there, with pauses
        }
        let turn = match shared.try_turn() {
            Ok(turn) => turn,
            Err(at) => {
                self.rest(at);
                return Ok(());
            }
        };
        drop(locked);
        // No other thread fills the outbox or makes the database live, so the checks above still
        // hold.
        let mut locked = shared.lock_to_write();
        let frames = locked
            .database
            .backlog(self.options.max_transaction_bytes)?;
        let _ = locked.outbox.push(frames);
        let held = locked.began.elapsed();
        drop(locked);
        let pause = shared.rest(turn, held);
        self.rest(Instant::now() + pause);
        Ok(())
    }

    /// Sends frames from the outbox, as many as may be in flight.
    fn send(&mut self) -> Result<(), DatabaseError> {
        let Some(link) = &mut self.link else {
            return Ok(());
        };
        let before = link.handed_over();
        let mut sent = link.send_rest(&self.shared, Instant::now());
        while sent.is_ok() && link.has_room() {
            let mut locked = self.shared.lock();
            let streams = self.streams.iter().map(|s| &s[..]);
            let under_way = link.in_flight();
            let most = (self.shared.stream_keeps(self.options.max_entries).messages / 2).max(1);
            if self.shared.reads() && locked.is_ahead(streams, under_way, most) {
                self.shared.wait_for_readers();
                break;
            }
            let Some(frame) = locked.pop() else {
                break;
            };
            drop(locked);
            if self.options.compress && self.compressor.is_none() {
                self.compressor = zstd::bulk::Compressor::new(COMPRESSION_LEVEL).ok();
            }
            let packed = frame::pack(frame.raw, self.compressor.as_mut());
            let (local_tx, shard, salt) = (frame.local_tx, frame.shard, frame.salt);
            let stream = &self.streams[shard as usize - 1];
            let sending = Sending {
                local_tx,
                shard,
                stream,
                salt,
            };
            sent = link.send(&self.shared, &sending, packed, Instant::now());
        }
        if let Err(e) = sent {
            self.drop_link(&e.to_string());
        } else if link.handed_over() > before {
            link.writer.flush();
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: Ack, now: Instant) {
        let Some(link) = &mut self.link else { return };
        let seq = match ack.result {
            Ok(seq) => seq,
            Err(refusal) => return self.refused(&refusal),
        };
        let Some((message, whole)) = link.acknowledged(ack.token, now) else {
            return;
        };
        let (stream, id) = (&message.stream, frame::id_text(&message.id));
        let mut locked = self.shared.lock();
        let took = now.saturating_duration_since(message.sent);
        let now_ms = locked.database.clock.now_ms();
        self.shared.measures.acknowledged(took, now_ms);
        if !locked.acknowledged(stream, (seq, ack.duplicate), id, whole) {
            drop(locked);
            let why = format!(
                "{stream} gave number {seq} to a different message before: the broker lost messages"
            );
            return self.drop_link(&why);
        }
        if link.is_idle() && locked.outbox.is_empty() {
            link.worked = true;
            self.refusal.clear();
            self.denial.clear();
            self.trouble.ends();
            self.shared.health.report_ok(PUBLISHING);
        }
    }

    /// Handles a refusal: the broker did not store a message, because its disk or the stream is
    /// full. That may last for days, so it is logged once and the attempts become rare.
    fn refused(&mut self, refusal: &Refusal) {
        let text = format!("a frame was not stored: {refusal}");
        self.shared.health.report_failing(PUBLISHING, &text);
        let news = self.trouble.fails(&text, SystemClock.uptime());
        // A stream without a leader has one in a moment. A broker that refuses goes on refusing.
        let level = match refusal.is_passing {
            true => news.unwrap_or(log::Level::Debug),
            false if text == self.refusal => log::Level::Debug,
            false => log::Level::Warn,
        };
        log::log!(level, "publishing: {text}; trying again");
        self.refusal = text;
        let worked = self.link.take().is_some_and(|link| {
            link.writer.doubt(); // another server may do better
            link.worked
        });
        self.connect_anew(ConnectRequest {
            worked,
            refused: true,
        });
    }

    /// Gives up the connection. The frames under way are sent again later, from the marks.
    fn drop_link(&mut self, why: &str) {
        self.refusal.clear();
        if let Some(link) = self.link.take() {
            link.writer.doubt();
            let text = format!("{why}{}", link.writer.complaint());
            self.shared.health.report_failing(PUBLISHING, &text);
            // A missing permission stays missing until a person grants it, so it is logged once, as
            // a warning.
            let is_denied = names_a_right(&text);
            let is_said = is_denied && text == self.denial;
            let news = self.trouble.fails(&text, SystemClock.uptime());
            let level = match is_denied {
                _ if self.shared.health.offline().is_some() => log::Level::Debug,
                true if is_said => log::Level::Debug,
                true => log::Level::Warn,
                false => news.unwrap_or(log::Level::Debug),
            };
            log::log!(level, "publishing: {text}; connecting again");
            self.denial = text;
            if is_said {
                self.refusal.clone_from(&self.denial);
            }
        }
        self.connect_anew(ConnectRequest::default());
    }

    fn connect_anew(&mut self, ask: ConnectRequest) {
        self.shared.measures.publishes(false);
        let mut locked = self.shared.lock();
        locked.outbox.clear();
        locked.database.stop_live();
        drop(locked);
        self.connector.connect(ask);
    }

    /// Stores marks and positions that would otherwise wait for the next write, and the mirror of
    /// the positions.
    fn tidy(&mut self, now: Instant) -> Result<(), DatabaseError> {
        self.tidy_at = now + self.options.cleanup_interval;
        self.poll_at = self.poll_at.or(Some(now)); // in case a hint was missed
        self.polls = POLL_AFTER.len();
        let mut locked = self.shared.lock();
        locked.database.check_files(true)?;
        locked.database.flush_now_and_then()?;
        let sequences = locked.database.sequences();
        let is_told = locked.database.is_live() && locked.outbox.is_empty();
        let kept = locked.database.kept_here_problem();
        drop(locked);
        if let Some(text) = kept.filter(|_| !self.said_kept) {
            self.said_kept = true;
            log::warn!("{text}");
        }
        // Frames that could not be sent may have been overtaken: then no acknowledgement comes.
        if is_told && self.link.as_ref().is_some_and(PublisherLink::is_idle) {
            self.shared.health.report_ok(PUBLISHING);
        }
        match self.link.as_ref().map(|link| link.writer.other_streams()) {
            Some(Some(text)) => self.shared.health.report_failing(ONE_STREAM, &text),
            Some(None) => self.shared.health.report_ok(ONE_STREAM),
            None => {}
        }
        if now >= self.mirror_at && self.mirror.write(&sequences) {
            self.mirror_at = now + MIRRORED_EVERY * self.options.cleanup_interval;
        }
        if self.sequences != sequences {
            self.sequences = sequences;
            self.shared.notify_scheduler();
        }
        if now >= self.written_at + RELEASED_AFTER && self.released_at != Some(self.written_at) {
            self.released_at = Some(self.written_at);
            self.compressor = None;
            self.shared.lock().database.release_memory()?;
            memory::release();
        }
        if self.link.is_none() {
            self.connector.connect(ConnectRequest::default()); // unless that is under way
        }
        Ok(())
    }

    /// Ends the thread: captures all writes until now, and waits up to one second for
    /// acknowledgements.
    fn finish(mut self) -> Result<(), String> {
        let patience = Instant::now() + Duration::from_millis(1000);
        let mut more = true;
        while more && Instant::now() < patience {
            let mut locked = self.shared.lock();
            let Ok(mut captured) = locked.database.capture() else {
                break;
            };
            locked.hand_over(&mut captured);
            // The next start continues the comparison of tables from where this one got to.
            more = captured.more && !locked.database.is_comparing();
        }
        let is_captured = self.shared.lock().database.is_captured();
        while Instant::now() < patience {
            self.rest_until = Instant::now();
            let goes_on = self.fetch_backlog().is_ok() && is_captured;
            let _ = self.send();
            let Some(link) = &self.link else { break };
            let until = match link.is_idle() {
                false => patience,
                true if goes_on && self.has_backlog() => self.rest_until.min(patience),
                true => break,
            };
            match link.writer.acks().recv_deadline(until) {
                Ok(ack) => self.acknowledged(ack, Instant::now()),
                Err(RecvTimeoutError::Timeout) if until < patience => {}
                Err(_) => break,
            }
        }
        self.connector.finish();
        Ok(())
    }
}
