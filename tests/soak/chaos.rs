//! What happens to processes and to name service while requests run.

use std::{sync::Arc, time::Duration};

use crate::{
    backend::{Health, Process},
    dns::{Mood, NameServer},
    plan::Rng,
    product::Product,
    world::World,
};

/// Causes one event after another until the run ends; then everything is well again.
pub(crate) fn run(world: &Arc<World>, names: &NameServer, product: &Product, stream: u64) {
    let mut rng = Rng::new(world.seed, stream);
    while !world.is_stopping() {
        world.pause(Duration::from_millis(500 + rng.next() % 2500));
        // Never more than one at a time, and two of four backends are always well.
        let index = rng.below(world.backends.len());
        let backend = &world.backends[index];
        let a_while = Duration::from_millis(200 + rng.next() % 2500);
        let event = match rng.below(100) {
            0..25 => {
                world.note_kill();
                backend.kill();
                world.note_kill();
                world.pause(a_while);
                backend.start(world, index, Process::Another);
                "a backend killed and restarted"
            }
            25..40 => {
                backend.refuse();
                world.pause(a_while);
                backend.start(world, index, Process::Same);
                "a backend refuses connections"
            }
            40..60 => {
                backend.set_listed(false);
                world.pause(a_while * 2);
                backend.set_listed(true);
                "a backend leaves the name and returns"
            }
            60..75 => {
                let mood = *rng.pick(&[
                    Mood::ServerFailure,
                    Mood::Silence,
                    Mood::Garbage,
                    Mood::Truncated,
                ]);
                names.set_mood(mood);
                world.pause(a_while * 2);
                names.set_mood(Mood::Fine);
                "the name server fails"
            }
            75..90 => {
                backend.set_health(*rng.pick(&[Health::Failing, Health::Garbage]));
                world.pause(a_while * 2);
                backend.set_health(Health::Fine);
                "a backend fails its checks"
            }
            _ => {
                product.signal("STOP");
                std::thread::sleep(Duration::from_millis(100 + rng.next() % 400));
                product.signal("CONT");
                "the balancer is stopped for a moment"
            }
        };
        world.count(&format!("event: {event}"));
    }
}
