package com.amazonaws.services.sqs;

public interface AmazonSQS {
    Object sendMessage(String target, String message);

    void shutdown();
}
