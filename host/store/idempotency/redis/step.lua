-- One step of the idempotency protocol, on one record, at once. It decides exactly as `apply` in the kernel does, and a test
-- holds the two against each other.
--
-- KEYS[1]  the record under its short name
-- KEYS[2]  the record under its long name, the only one that the version before knows
-- ARGV     time in milliseconds ('' for this server's), the retention of the step (how long a record is kept after its first claim and
--          after its response; no lease is longer), for how long one without a response is remembered after that, which of the keys a
--          first claim is written under, the step, its owner; then
--            reserve: write id, hybrid time of the start, lease in milliseconds
--            stamp:   fence, stamp
--            done:    fence, response
--            release, abandon: fence
-- Answers  {'reserved', fence, stamp, start}, {'completed', response}, {'in-progress', milliseconds left}, {'conflict'}, {'expired'},
--          {'stored'}, {'lost'}, {'damaged', why}
--
-- A record is looked for under both names, and stays under the one under which its first claim was written.
--
-- A record, version 1, in bytes: version 1, state 1 (0 in progress, 1 done), write id 16, owner 16, fence 8, start 8,
-- stamp 9 (1 and the stamp, or zeros), lease from 8, lease until 8, kept until 8, response. Version 2, only under a short name, is one
-- that is done, with what is still asked about it: version 1, start of the write id 10, kept until 6, start of the owner 2, end of the
-- fence 1, response. Numbers are big endian. Those that are only compared stay bytes; a number of this language is exact up to 2^53 only.

local FIXED, FIRST_FENCE, NO_STAMP = 83, '\0\0\0\0\0\0\0\1', '\0\0\0\0\0\0\0\0\0'
local SMALL, NAMED = 20, 10
local first, step, owner = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local now, kept, doubted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not now then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end

-- What a small record keeps of its owner and fence. Only the step that has recorded a response meets it again, with an equal response.
local function mark(of, fence)
    return string.sub(of, 1, 2) .. string.sub(fence, 8)
end

-- The record in `bytes` if it is remembered, or nothing and why it is not one.
local function read(bytes, is_short)
    local version = string.byte(bytes, 1)
    if version == 2 and is_short then
        if #bytes < SMALL then
            return nil, 'it has ' .. #bytes .. ' bytes, which cannot be'
        end
        local kept_until = struct.unpack('>I6', bytes, 2 + NAMED)
        return kept_until > now and {
            done = true, write_id = string.sub(bytes, 2, 1 + NAMED), mark = string.sub(bytes, 18, SMALL), kept_until = kept_until,
            response = string.sub(bytes, SMALL + 1),
        }
    end
    if version ~= 1 then
        return nil, 'codec version ' .. tostring(version) .. ' is not known here'
    end
    local state, flag = string.byte(bytes, 2), string.byte(bytes, 51)
    if #bytes < FIXED or (state == 0 and #bytes > FIXED) then
        return nil, 'it has ' .. #bytes .. ' bytes, which cannot be'
    end
    if state > 1 or flag > 1 then
        return nil, 'its state or stamp is not one'
    end
    local from, till, kept_until = struct.unpack('>I8I8I8', bytes, 60)
    local remembered_until = kept_until
    if state == 0 then remembered_until = kept_until + doubted end
    return remembered_until > now and {
        done = state == 1, write_id = string.sub(bytes, 3, 18), owner = string.sub(bytes, 19, 34),
        fence = string.sub(bytes, 35, 42), start = string.sub(bytes, 43, 50), stamp = string.sub(bytes, 51, 59),
        from = from, till = till, kept_until = kept_until, expired = state == 0 and kept_until <= now,
        response = string.sub(bytes, FIXED + 1),
    }
end

local at, held, left_over = first, nil, false
for _, index in ipairs({first, 3 - first}) do
    local bytes = redis.call('GET', KEYS[index])
    if bytes then
        local record, why = read(bytes, index == 1)
        if why then return {'damaged', why} end
        if record then
            at, held = index, record
            break
        end
        left_over = left_over or index ~= first
    end
end

local function put(record, state, response)
    local bytes
    if state == '\1' and at == 1 then
        bytes = '\2' .. string.sub(record.write_id, 1, NAMED) .. struct.pack('>I6', record.kept_until) .. mark(record.owner, record.fence)
    else
        local times = struct.pack('>I8I8I8', record.from, record.till, record.kept_until)
        bytes = '\1' .. state .. record.write_id .. record.owner .. record.fence .. record.start .. record.stamp .. times
    end
    local left = record.kept_until - now
    if state == '\0' then left = left + doubted end
    -- The record says itself until when it counts; that it goes from the server then only frees memory.
    redis.call('SET', KEYS[at], bytes .. response, 'PX', string.format('%.0f', math.max(left, 1)))
end

local function lease(record, milliseconds)
    record.from, record.till = now, now + math.min(milliseconds, kept)
    put(record, '\0', '')
end

if step == 'reserve' then
    local write_id, milliseconds = ARGV[7], tonumber(ARGV[9])
    if not held or (held.expired and held.write_id ~= write_id) then
        if held and at ~= first then left_over = true end
        at = first
        held = {
            write_id = write_id, owner = owner, fence = FIRST_FENCE, start = ARGV[8], stamp = NO_STAMP,
            kept_until = now + kept,
        }
    elseif held.write_id ~= string.sub(write_id, 1, #held.write_id) then
        return {'conflict'}
    elseif held.done then
        return {'completed', held.response}
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
    -- What is under the other name counts no longer, and would again if the clock were set back. Not before the claim is written: a
    -- server without memory refuses that as a whole.
    if left_over then redis.call('DEL', KEYS[3 - first]) end
    return {'reserved', held.fence, held.stamp, held.start}
end

local mine = false
if held and held.mark then
    mine = held.mark == mark(owner, ARGV[7])
elseif held then
    mine = held.owner == owner and held.fence == ARGV[7]
end
if not mine then
    return {'lost'}
end
if step == 'done' then
    if held.done then
        if held.response ~= ARGV[8] then return {'lost'} end
    else
        -- Never shorter than its claim: the tenant's retention may have been shortened since.
        held.kept_until = math.max(held.kept_until, now + kept)
        put(held, '\1', ARGV[8])
    end
elseif held.done then
    return {'lost'}
elseif step == 'stamp' then
    local stamp = '\1' .. ARGV[8]
    if held.expired then
        return {'lost'}
    elseif held.stamp == NO_STAMP then
        held.stamp = stamp
        put(held, '\0', '')
    elseif held.stamp ~= stamp then
        return {'lost'}
    end
elseif step == 'release' and held.fence == FIRST_FENCE and held.stamp == NO_STAMP then
    redis.call('DEL', KEYS[at])
else
    lease(held, 0)
end
return {'stored'}
