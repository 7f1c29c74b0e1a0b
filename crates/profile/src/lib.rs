//! Who this machine is, and which tuned data there is for it.
//!
//! Three questions, one type for each answer:
//! - [`Machine::detect`]: what the processor is, its caches, and the cores that this process may use;
//! - [`find`]: the [`Profile`] that was tuned for this machine and these kernels, or for one that is near enough, or why
//!   there is none;
//! - [`tiles`]: the block sizes to use where there is no profile; [`Machine::bf16_pairs_pay`], which kernels are worth it, and
//!   [`prefetch`](prefetch()), how they ask for memory.
//!
//! Nothing here searches, measures or runs a kernel, and nothing keeps global state.
//!
//! # Files
//! One JSON file for each machine, `profile-<fingerprint>.json`, in the user's data directory or in `/etc/regard`; [`find`]
//! says which one is used. [`save_merged`] is how tuners write: under a lock, into a temporary file that is flushed and then
//! renamed, merged with what is there. Whoever is killed at any moment leaves the old file or the new one, and readers never
//! wait.
//!
//! # Trust
//! Detection never fails: what cannot be found out is zero, empty or `None`, and every accessor that needs a number
//! says what it assumes instead. A profile is the opposite: a file is taken whole or not at all, and the
//! [`ProfileError`] says in one line what is wrong with it.
//!
//! ```
//! use regard_profile::{Found, KernelSet, Machine, find};
//!
//! let machine = Machine::detect();
//! let kernels = KernelSet {
//!     fingerprint: "0123456789abcdef".to_owned(),
//!     names: vec!["lanes_2x8".to_owned()],
//!     key_block_limits: 8..=4096,
//!     query_block_limits: 1..=1024,
//! };
//! match find(&machine, &kernels) {
//!     Found::None => println!("not tuned yet"),
//!     Found::Loaded { path, profile, fit } => println!("{}: {} entries, {fit:?}", path.display(), profile.entries.len()),
//!     Found::Rejected { error, .. } => println!("set aside: {error}"),
//! }
//! ```
#![forbid(unsafe_code)]

mod caches;
mod card;
mod cgroup;
mod check;
mod class;
mod cores;
mod error;
mod features;
mod files;
mod hash;
mod identity;
mod layout;
mod machine;
mod merge;
mod migrate;
mod model;
mod nearest;
mod paths;
mod prefetch;
mod schema;
mod source;
mod store;
mod tidy;

pub use caches::{CacheSize, Caches};
pub use card::{Card, Figure, ForkJoin, Memory, Operation, Peak, Read};
pub use class::{Class, ClassRef, Family, MaskClass};
pub use cores::{CoreClass, Cores};
pub use error::ProfileError;
pub use hash::fingerprint;
pub use machine::Machine;
pub use merge::merge;
pub use model::{
    KernelCost, ROWS_KEY_STEP, ROWS_UP_TO, TileQuery, Tiles, in_parts_from, preferred_tile, rows_key_block, rows_up_to,
    tiles,
};
pub use nearest::Fit;
pub use paths::{Found, PROFILE_VARIABLE, default_path, directories, file_name, find, profiles_in, search_path};
pub use prefetch::{Prefetch, Reading, TunedReading, prefetch};
pub use schema::{Confidence, Config, Crossover, Entry, KernelSet, Measured, Profile, Run, RunnerUp, SCHEMA, Tool};
pub use source::Source;
pub use store::{MAX_BYTES, Saved, inspect, load, save, save_merged};
pub use tidy::{Leftover, LeftoverKind, leftovers};
