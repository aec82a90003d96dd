//! The ground that the other tests stand on.

use jiff::Timestamp;
use tests::{GROUP, Stack};

#[tokio::test]
async fn the_world_has_one_instance_and_is_quiet() {
    let stack = Stack::start().await;
    let aws = stack.aws();
    assert_eq!(aws.ecs.instances().count(), 1);
    assert_eq!(aws.ecs.group(GROUP).unwrap().desired, 1);
    assert!(aws.next_due().is_none_or(|due| due <= Timestamp::now()));
}
