pub mod model;
pub mod clock;
pub mod stream;
pub mod config;
pub mod cli;
