//! qcow2 against foreign oracles (qemu-img, qemu-io) and against damage.

#[cfg(test)]
mod damage;
#[cfg(test)]
mod keep;
#[cfg(test)]
mod mutate;
#[cfg(test)]
mod read;
#[cfg(test)]
mod resume;
#[cfg(test)]
mod support;
#[cfg(test)]
mod write;
