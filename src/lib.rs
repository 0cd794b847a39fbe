<<<<<<< HEAD
pub mod apply;
pub mod capture;
pub mod cli;
pub mod clock;
pub mod config;
pub mod database;
=======
pub mod cli;
pub mod clock;
pub mod config;
>>>>>>> stream
pub mod model;
pub mod stream;
