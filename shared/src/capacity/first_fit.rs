//! First fit: each agent gets the first place with room for it.
//!
//! Going through the places for each agent would take as many steps as there are agents times places.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::{Exclusive, Need};
use crate::config::Size;

/// A place for tasks: an instance that is registered, booting or still to be launched.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub room: Size,
    pub gpus: u32,
    pub slots: u32,
    pub taken: BTreeSet<Exclusive>,
}

impl Place {
    fn take(&mut self, need: &Need) -> bool {
        let fits = self.slots > 0 && need.take_from(&mut self.room, &mut self.gpus, &mut self.taken);
        self.slots -= u32::from(fits);
        fits
    }

    /// Whether only CPU or memory can prevent this kind of agent from running here.
    fn serves(&self, need: &Need) -> bool {
        self.slots > 0 && need.gpus <= self.gpus && need.exclusive.is_disjoint(&self.taken)
    }
}

/// The index of the place that each agent gets, the largest agents first: the usual way to need few places (first fit
/// decreasing). Agents without a place are left out.
pub(super) fn first_fit(mut places: Vec<Place>, demand: &[Need]) -> Vec<usize> {
    let mut demand: Vec<&Need> = demand.iter().collect();
    demand.sort_unstable_by_key(|need| Reverse((need.size.memory, need.size.cpu, *need)));
    let mut kinds = BTreeMap::new();
    let placed = demand.into_iter().filter_map(|need| {
        let kind = kinds.entry((need.gpus, &need.exclusive)).or_insert_with(|| Kind::new(&places));
        kind.place(need, &mut places)
    });
    placed.collect()
}

/// The places for agents that differ only in their size, and come in the order of their memory, the largest first.
struct Kind {
    /// A binary tree: the nodes `2n` and `2n + 1` are below node `n`, and the last half of the nodes are the places. Each
    /// is the most CPU that a place there may have free; none if all of them have too little memory, or serve no more
    /// agents of this kind.
    cpu: Vec<Option<u32>>,
    /// The places with too little memory for the agents so far, by their free memory.
    small: BinaryHeap<(u32, usize)>,
}

impl Kind {
    fn new(places: &[Place]) -> Self {
        let leaves = places.len().next_power_of_two();
        let mut cpu = vec![None; leaves];
        cpu.extend(places.iter().map(|place| Some(place.room.cpu)));
        cpu.resize(2 * leaves, None);
        for node in (1..leaves).rev() {
            cpu[node] = cpu[2 * node].max(cpu[2 * node + 1]);
        }
        Self { cpu, small: BinaryHeap::new() }
    }

    fn place(&mut self, need: &Need, places: &mut [Place]) -> Option<usize> {
        while let Some(&(memory, index)) = self.small.peek()
            && memory >= need.size.memory
        {
            self.small.pop();
            self.set(index, Some(places[index].room.cpu));
        }
        loop {
            let index = self.first(need.size.cpu)?;
            let place = &mut places[index];
            if place.take(need) {
                return Some(index);
            }
            // The tree does not know yet how much memory it has, and what was taken of it since.
            let (serves, is_small) = (place.serves(need), place.room.memory < need.size.memory);
            let cpu = place.room.cpu;
            self.small.extend((serves && is_small).then_some((place.room.memory, index)));
            self.set(index, (serves && !is_small).then_some(cpu));
        }
    }

    /// The first place that may have this much CPU.
    fn first(&self, cpu: u32) -> Option<usize> {
        let has_enough = |node: &usize| self.cpu[*node] >= Some(cpu);
        let leaves = self.cpu.len() / 2;
        let mut node = Some(1).filter(has_enough)?;
        while node < leaves {
            node = Some(2 * node).filter(has_enough).unwrap_or(2 * node + 1);
        }
        Some(node - leaves)
    }

    fn set(&mut self, index: usize, cpu: Option<u32>) {
        let mut node = self.cpu.len() / 2 + index;
        self.cpu[node] = cpu;
        while node > 1 {
            node /= 2;
            self.cpu[node] = self.cpu[2 * node].max(self.cpu[2 * node + 1]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn place() -> impl Strategy<Value = Place> {
        let ports = btree_set((1u16..4).prop_map(Exclusive::HostPort), 0..3);
        ((0u32..6, 0u32..6), 0u32..3, 0u32..5, ports).prop_map(|((cpu, memory), gpus, slots, taken)| Place {
            room: Size { cpu, memory },
            gpus,
            slots,
            taken,
        })
    }

    fn need() -> impl Strategy<Value = Need> {
        let ports = btree_set((1u16..4).prop_map(Exclusive::HostPort), 0..2);
        let need = |((cpu, memory), gpus, exclusive)| Need { size: Size { cpu, memory }, gpus, exclusive };
        ((0u32..4, 0u32..4), 0u32..2, ports).prop_map(need)
    }

    proptest! {
        #[test]
        fn is_the_same_as_looking_at_every_place(places in vec(place(), 0..20), demand in vec(need(), 0..40)) {
            let found = first_fit(places.clone(), &demand);
            let mut sorted: Vec<&Need> = demand.iter().collect();
            sorted.sort_by_key(|need| Reverse((need.size.memory, need.size.cpu, *need)));
            let mut plain = places;
            let look = |need: &Need| plain.iter_mut().position(|place| place.take(need));
            prop_assert_eq!(found, sorted.into_iter().filter_map(look).collect::<Vec<_>>());
        }
    }
}
