package com.amazonaws.services.sns;

import test.Sent;

public final class AmazonSNSClientBuilder {
    private String region;

    private AmazonSNSClientBuilder() {
    }

    public static AmazonSNSClientBuilder standard() {
        return new AmazonSNSClientBuilder();
    }

    public AmazonSNSClientBuilder withRegion(String region) {
        this.region = region;
        return this;
    }

    public AmazonSNS build() {
        return new AmazonSNS() {
            @Override
            public Object publish(String target, String message) {
                Sent.add("sns v1", region, target, message);
                return null;
            }

            @Override
            public void shutdown() {
            }
        };
    }
}
