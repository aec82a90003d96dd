package software.amazon.awssdk.regions;

public final class Region {
    private final String id;

    private Region(String id) {
        this.id = id;
    }

    public static Region of(String value) {
        return new Region(value);
    }

    public String id() {
        return id;
    }
}
