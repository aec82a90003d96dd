package com.amazonaws.services.sns;

public interface AmazonSNS {
    Object publish(String target, String message);

    void shutdown();
}
