-- One step of the idempotency protocol, on one record, at once. It decides exactly as `apply` in the kernel does, and a test
-- holds the two against each other.
--
-- KEYS[1]  the record
-- ARGV     time in milliseconds ('' for this server's), the retention of the step (how long a record is kept after its first claim and
--          after its response; no lease is longer), for how long one without a response is remembered after that, the step, its owner; then
--            reserve: write id, hybrid time of the start, lease in milliseconds
--            stamp:   fence, stamp
--            done:    fence, response
--            release, abandon: fence
-- Answers  {'reserved', fence, stamp, start}, {'completed', response}, {'in-progress', milliseconds left}, {'conflict'}, {'expired'},
--          {'stored'}, {'lost'}, {'damaged', why}
--
-- A record, version 1, in bytes: version 1, state 1 (0 in progress, 1 done), write id 16, owner 16, fence 8, start 8,
-- stamp 9 (1 and the stamp, or zeros), lease from 8, lease until 8, kept until 8, response. Numbers are big endian. Those
-- that are only compared stay bytes; a number of this language is exact up to 2^53 only.

local FIXED, FIRST_FENCE, NO_STAMP = 83, '\0\0\0\0\0\0\0\1', '\0\0\0\0\0\0\0\0\0'
local key, step, owner = KEYS[1], ARGV[4], ARGV[5]
local now, kept, doubted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function put(record, state, response)
    local times = struct.pack('>I8I8I8', record.from, record.till, record.kept_until)
    local bytes = '\1' .. state .. record.write_id .. record.owner .. record.fence .. record.start .. record.stamp .. times
    local left = record.kept_until - now
    if state == '\0' then left = left + doubted end
    -- The record says itself until when it counts; that it goes from the server then only frees memory.
    redis.call('SET', key, bytes .. response, 'PX', string.format('%.0f', math.max(left, 1)))
end

local function lease(record, milliseconds)
    record.from, record.till = now, now + math.min(milliseconds, kept)
    put(record, '\0', '')
end

local bytes, held = redis.call('GET', key), nil
if bytes then
    if string.byte(bytes, 1) ~= 1 then
        return {'damaged', 'codec version ' .. tostring(string.byte(bytes, 1)) .. ' is not known here'}
    end
    local state, flag = string.byte(bytes, 2), string.byte(bytes, 51)
    if #bytes < FIXED or (state == 0 and #bytes > FIXED) then
        return {'damaged', 'it has ' .. #bytes .. ' bytes, which cannot be'}
    end
    if state > 1 or flag > 1 then
        return {'damaged', 'its state or stamp is not one'}
    end
    local from, till, kept_until = struct.unpack('>I8I8I8', bytes, 60)
    local remembered_until = kept_until
    if state == 0 then remembered_until = kept_until + doubted end
    if remembered_until > now then
        held = {
            done = state == 1, write_id = string.sub(bytes, 3, 18), owner = string.sub(bytes, 19, 34),
            fence = string.sub(bytes, 35, 42), start = string.sub(bytes, 43, 50), stamp = string.sub(bytes, 51, 59),
            from = from, till = till, kept_until = kept_until, expired = state == 0 and kept_until <= now,
        }
    end
end

if step == 'reserve' then
    local write_id, milliseconds = ARGV[6], tonumber(ARGV[8])
    if not held or (held.expired and held.write_id ~= write_id) then
        held = {
            write_id = write_id, owner = owner, fence = FIRST_FENCE, start = ARGV[7], stamp = NO_STAMP,
            kept_until = now + kept,
        }
    elseif held.write_id ~= write_id then
        return {'conflict'}
    elseif held.done then
        return {'completed', string.sub(bytes, FIXED + 1)}
    elseif held.expired then
        return {'expired'}
    else
        -- A lease from the future was granted before the clock was set back: it has ended.
        local left = 0
        if now >= held.from then left = math.max(held.till - now, 0) end
        if left == 0 then
            held.owner, held.fence = owner, struct.pack('>I8', struct.unpack('>I8', held.fence) + 1)
        elseif held.owner == owner then
            milliseconds = math.max(milliseconds, left)
        else
            return {'in-progress', left}
        end
    end
    lease(held, milliseconds)
    return {'reserved', held.fence, held.stamp, held.start}
end

if not held or held.owner ~= owner or held.fence ~= ARGV[6] then
    return {'lost'}
end
if step == 'done' then
    if held.done then
        if string.sub(bytes, FIXED + 1) ~= ARGV[7] then return {'lost'} end
    else
        -- Never shorter than its claim: the tenant's retention may have been shortened since.
        held.kept_until = math.max(held.kept_until, now + kept)
        put(held, '\1', ARGV[7])
    end
elseif held.done then
    return {'lost'}
elseif step == 'stamp' then
    local stamp = '\1' .. ARGV[7]
    if held.expired then
        return {'lost'}
    elseif held.stamp == NO_STAMP then
        held.stamp = stamp
        put(held, '\0', '')
    elseif held.stamp ~= stamp then
        return {'lost'}
    end
elseif step == 'release' and held.fence == FIRST_FENCE and held.stamp == NO_STAMP then
    redis.call('DEL', key)
else
    lease(held, 0)
end
return {'stored'}
