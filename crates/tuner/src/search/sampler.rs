//! What a search measures with: the machine, or a record of one.

/// Measures candidates. The search is the same whoever does it.
pub trait Sampler {
    /// Checks a candidate of a contest against the definition, before anything of it is timed.
    ///
    /// # Errors
    /// What is wrong with its result, or with the memory around it.
    fn verify(&mut self, contest: usize, candidate: usize) -> Result<(), String>;

    /// Seconds of one call of a candidate that has been verified: the mean over as many as make a sample.
    fn sample(&mut self, contest: usize, candidate: usize) -> f64;

    /// The multiply-add peak at this moment, in GFLOP/s.
    fn canary(&mut self) -> f64;

    /// What disturbed the machine since this was asked last, as far as the system tells.
    fn disturbance(&mut self) -> Option<String>;

    /// Seconds since the search began.
    fn elapsed(&self) -> f64;

    /// Whether the search is to come to an end.
    fn stopped(&self) -> bool;
}
